"""The event loop's lag: the time that every tunnel, probe and request waits while other work holds the loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

INTERVAL: Final = 0.25
"""Seconds between two measurements."""


async def watch_lag(
    report: Callable[[float], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Report by how many seconds a timer of the loop was late, at each interval, until cancelled."""
    while True:
        due = clock() + INTERVAL
        await sleep(INTERVAL)
        report(max(0.0, clock() - due))
