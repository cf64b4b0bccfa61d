"""How late the event loop is: what every tunnel, probe and request waits while something else has the loop."""

import asyncio
from collections.abc import Callable
from typing import Final

EVERY: Final = 0.25
"""Seconds between two looks."""


async def watch_lag(report: Callable[[float], None]) -> None:
    """Report again and again by how many seconds a timer of the loop's was late, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + EVERY
        await asyncio.sleep(EVERY)
        report(max(0.0, loop.time() - due))
