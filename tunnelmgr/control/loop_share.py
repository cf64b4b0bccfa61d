"""A share of the event loop for answers that are expensive to make: one at a time, in slices, with pauses.

So no number of clients takes the loop from the tunnels, and no fleet is so large that one answer holds it for long.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, ParamSpec, TypeVar

from aiohttp import web

from tunnelmgr.threads import in_thread

PAUSE_FACTOR: Final = 3.0
"""Length of the pause after a slice, as a multiple of the CPU time that it took: a quarter of the loop in all."""
SLICE: Final = 100
"""Agents of one slice; they take about 3 ms."""
MAX_WAITING: Final = 64
"""Answers that may wait for their turn."""

P = ParamSpec("P")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Turn:
    """The turn of one answer; `spent` are the seconds of CPU that it has taken, without pauses."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._elsewhere = 0.0
        self._began = time.thread_time()

    async def slices(self, items: Sequence[Item]) -> AsyncIterator[Sequence[Item]]:
        """Yield the items in slices, with a pause after each."""
        for start in range(0, len(items), SLICE):
            yield items[start : start + SLICE]
            await self.pause()

    async def in_thread(self, function: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
        """Call what cannot be cut into slices in a thread, between whose steps the loop runs; its CPU time counts."""
        answer, spent = await in_thread(_timed, lambda: function(*args, **kwargs))
        self._elsewhere += spent
        return answer

    async def pause(self) -> None:
        """Leave the loop to the tunnels, in proportion to the time since the last pause."""
        spent = time.thread_time() - self._began + self._elsewhere
        self._elsewhere = 0.0
        self.spent += spent
        await asyncio.sleep(PAUSE_FACTOR * spent)
        self._began = time.thread_time()


class LoopShare:
    """The share of the loop for all answers of a server."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for this answer's turn; raises HTTPServiceUnavailable if too many wait already."""
        if self._waiting >= MAX_WAITING:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_WAITING} requests wait already; try again later\n", headers={"Retry-After": "5"}
            )
        self._waiting += 1
        try:
            async with self._turn:
                turn = Turn()
                try:
                    yield turn
                finally:
                    await turn.pause()
        finally:
            self._waiting -= 1


def _timed(function: Callable[[], Answer]) -> tuple[Answer, float]:
    """Return a function's answer, and the CPU time of this thread in seconds; the thread is new."""
    return function(), time.thread_time()
