"""How tests wait for a condition that has no event: all of them poll here, with a deadline."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from lab import processes

Found = TypeVar("Found")
DEADLINE = 10.0
"""Seconds."""


async def until(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Wait until a condition of this process holds; fails at the deadline."""
    async with asyncio.timeout(deadline):
        while not condition():  # noqa: ASYNC110 - many things are waited for that have no event
            await asyncio.sleep(0.005)


async def until_elsewhere(condition: Callable[[], Found], expectation: str, deadline: float = DEADLINE) -> Found:
    """Wait until a condition that blocks, such as a question to another process, holds, and return its value."""
    return await asyncio.to_thread(processes.until, condition, expectation, timeout=deadline)
