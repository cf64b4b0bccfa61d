"""Bulk data makes room: while other agents are at work, one batch of it in each turn of the loop, whosever it is.

Otherwise all that can be carried is carried at once. That takes the loop less, since the agents' window adjusts are
then worked off many at a time: with eight pulls a tenth.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

COMPANY: Final = 0.05
"""Seconds for which somebody who has said something is reckoned with: a small request is over by then."""


class RoundRobin:
    """Lets those who carry bulk data go on, in the order in which they come."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._gone = False
        self._company = 0.0

    def company(self) -> None:
        """Take note that somebody else is at work."""
        self._company = asyncio.get_running_loop().time() + COMPANY

    def go(self, step: Callable[[], None]) -> bool:
        """Call `step` now, or in a later turn of the loop where one has gone in this turn; returns whether now."""
        loop = asyncio.get_running_loop()
        if self._gone:
            self._waiting.append(step)
            return False
        if loop.time() < self._company:
            self._gone = True
            loop.call_soon(self._next)
        step()
        return True

    def _next(self) -> None:
        if not self._waiting:
            self._gone = False
            return
        asyncio.get_running_loop().call_soon(self._next)
        self._waiting.popleft()()


_robins: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, RoundRobin]] = WeakKeyDictionary()


def robin_of(loop: asyncio.AbstractEventLoop) -> RoundRobin:
    """Return the one that all share who run on this loop."""
    return _robins.setdefault(loop, RoundRobin())
