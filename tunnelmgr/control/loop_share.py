"""A share of the event loop for answers that are expensive to make: one at a time, in slices, with pauses.

Clients take turns, so that one that asks without end delays another by one answer. So no number of clients takes the
loop from the tunnels, and no fleet is so large that one answer holds it for long.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, ParamSpec, TypeVar

from aiohttp import web

from tunnelmgr.control.callers import client_of, too_many
from tunnelmgr.threads import in_thread
from tunnelmgr.turns import Turns

PAUSE_FACTOR: Final = 3.0
"""Length of the pause after a slice, as a multiple of the CPU time that it took: a quarter of the loop in all."""
SLICE: Final = 100
"""Agents of one slice; they take about 3 ms."""
MAX_WAITING: Final = 64
"""Answers that may wait for their turn, of all clients."""
MAX_OWN: Final = 16
"""Answers that may wait of one client; clients take turns."""

P = ParamSpec("P")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Turn:
    """The turn of one answer; `spent` are the seconds of CPU that it has taken, without pauses."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._owed = 0.0
        self._began = time.thread_time()

    async def slices(self, items: Sequence[Item]) -> AsyncIterator[Sequence[Item]]:
        """Yield the items in slices, with a pause after each."""
        for start in range(0, len(items), SLICE):
            yield items[start : start + SLICE]
            await self.pause()

    async def in_thread(self, function: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer:
        """Call what cannot be cut into slices in a thread, between whose steps the loop runs; its CPU time counts."""
        self._count_own()
        answer, spent = await in_thread(_timed, lambda: function(*args, **kwargs))
        self.spent += spent
        self._owed += spent
        self._began = time.thread_time()  # meanwhile, the loop's thread has worked for others
        return answer

    async def pause(self) -> None:
        """Leave the loop to the tunnels, in proportion to the time since the last pause."""
        self._count_own()
        owed, self._owed = self._owed, 0.0
        await asyncio.sleep(PAUSE_FACTOR * owed)
        self._began = time.thread_time()

    def _count_own(self) -> None:
        """Count the CPU time of the loop's thread since it last worked for others."""
        now = time.thread_time()
        self.spent += now - self._began
        self._owed += now - self._began


class LoopShare:
    """The share of the loop for all answers of a kind."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, request: web.Request) -> AsyncIterator[Turn]:
        """Wait until it is this client's turn; raises HTTPServiceUnavailable if too many wait already."""
        await self._take(client_of(request))
        turn = Turn()
        try:
            yield turn
        finally:
            try:
                await turn.pause()
            finally:
                self._pass_on()

    async def _take(self, client: str) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        if len(self._turns) >= MAX_WAITING or self._turns.of(client) >= MAX_OWN:
            raise too_many(f"requests wait already ({MAX_WAITING} requests, {MAX_OWN} of one client)")
        wait = self._turns.add(client, 1.0)
        try:
            await wait.turn
        except asyncio.CancelledError:
            self._turns.remove(client, wait)
            if not wait.turn.cancelled():  # it was given the turn at the same moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next client."""
        while (wait := self._turns.next()) is not None:
            if not wait.turn.cancelled():
                wait.turn.set_result(None)
                return
        self._is_taken = False


def _timed(function: Callable[[], Answer]) -> tuple[Answer, float]:
    """Return a function's answer, and the CPU time of this thread in seconds; the thread is new."""
    return function(), time.thread_time()
