"""A queue of dials that wait for one resource, ordered by precedence and by age; see `admission`."""

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.precedence import Precedence

OLDEST_EVERY: Final = 4
"""Every fourth admission goes to the dial that has waited longest, so that none waits forever."""
MAX_STALE_ENTRIES: Final = 32
"""Entries of dials that have left which the heap may hold before it is rebuilt, besides one per waiting dial."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A dial that waits; `admitted` is settled when it is admitted."""

    precedence: Precedence
    admitted: "asyncio.Future[None]"


class WaitQueue:
    """Dials that wait for one resource."""

    def __init__(self) -> None:
        self._by_age: OrderedDict[Waiting, None] = OrderedDict()
        self._by_precedence: list[tuple[Precedence, int, Waiting]] = []  # a heap; may hold some that have left
        self._serial = itertools.count()
        self._admissions = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def join(self, precedence: Precedence) -> Waiting:
        """Add a dial; the caller then awaits `wait`."""
        waiting = Waiting(precedence, asyncio.get_running_loop().create_future())
        self._by_age[waiting] = None
        heapq.heappush(self._by_precedence, (precedence, next(self._serial), waiting))
        return waiting

    async def wait(self, waiting: Waiting, give_back: Callable[[], None]) -> None:
        """Wait until `admit` picks this dial; if it is cancelled only after that, `give_back` is called."""
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            # A future that was settled before its task was cancelled stays settled.
            if not waiting.admitted.cancelled():
                give_back()
            raise
        finally:
            self._by_age.pop(waiting, None)

    def admit(self, allowed: Callable[[Precedence], bool] = lambda _: True) -> bool:
        """Admit the next dial; returns False if none waits, or none that is `allowed`.

        If a precedence is allowed, every higher one must be allowed.
        """
        self._drop_done()
        if not self._by_age or not allowed((first := self._by_precedence[0][-1]).precedence):
            return False
        self._admissions += 1
        oldest = next(iter(self._by_age))
        chosen = oldest if self._admissions % OLDEST_EVERY == 0 and allowed(oldest.precedence) else first
        del self._by_age[chosen]
        chosen.admitted.set_result(None)
        return True

    def _drop_done(self) -> None:
        """Remove dials that were admitted or cancelled from both fronts, even in this iteration of the loop."""
        heap = self._by_precedence
        while heap and heap[0][-1].admitted.done():
            heapq.heappop(heap)
        while self._by_age and (oldest := next(iter(self._by_age))).admitted.done():
            del self._by_age[oldest]
        if len(heap) > 2 * len(self._by_age) + MAX_STALE_ENTRIES:
            self._by_precedence = [entry for entry in heap if not entry[-1].admitted.done()]
            heapq.heapify(self._by_precedence)
