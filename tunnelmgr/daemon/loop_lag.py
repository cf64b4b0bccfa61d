"""The event loop's lag: the time that every tunnel, probe and request waits while other work holds the loop."""

import asyncio
from collections.abc import Callable
from typing import Final

INTERVAL: Final = 0.25
"""Seconds between two measurements."""


async def watch_lag(report: Callable[[float], None]) -> None:
    """Report by how many seconds a timer of the loop was late, at each interval, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + INTERVAL
        await asyncio.sleep(INTERVAL)
        report(max(0.0, loop.time() - due))
