"""Admission control: which agents may be dialled now, and which handshakes may compute.

    waiting ──place──▶ connecting ──the server speaks──▶ ready ──slot──▶ handshake ──first probe──▶ up
                         (TCP, and the server's                 ◀──silent── (goes on without a slot)
                          identification string)

There are two resources, since the two things that a dial costs are unlike:

- A **place** is a descriptor and a little memory, from before TCP connects until the tunnel is up or the dial has
  failed. An agent that does not answer holds one until its deadline, so there are many, and the last of them are kept
  for agents that were up or are new: dead agents cannot use up what good ones need.
- A **slot** is CPU. A handshake costs tens of milliseconds of computing, here and on the agent; begun all at once, a
  fleet's handshakes would all end together, at the end. `SLOTS` are always there, and one more each `PACE` while the
  loop is on time. A slot is taken only once the server has spoken, and is taken back where handshakes wait and its
  server stays silent: nothing is computed then.

Dials begin a few ahead of the free slots (`AHEAD`), so that servers prepare their first bytes while others compute.

How long a server may be silent before it counts as silent follows from how long servers take to speak: a few times as
long as the latest ones took (`patience`). A fixed time would be too short where all agents are slow, as on a crowded
host: more and more handshakes would be let in, and each would get slower. A server that is silent for longer delays the
next dial, or the next handshake, no more.

In both queues the order is that of `core/precedence.py`, and every `ELDER`th time the one that has waited longest, so
that none waits for ever.
"""

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from tunnelmgr.core.precedence import FIRST, NEW, PROVEN, Precedence
from tunnelmgr.ssh.permit import ReceiveProgress

PLACES: Final = 1024
"""Dials under way at most, whatever they wait for: a sixteenth of the descriptors that the unit grants."""
SHARES: Final = {PROVEN: 1.0, NEW: 7 / 8}
"""The part of all places that may be taken when an agent of this rank is let in."""
FAILING_SHARE: Final = 1 / 2
"""The same for agents that keep failing."""
AHEAD: Final = 4
"""Dials that have just begun, or whose server has spoken and that wait for a slot."""
LEAST_PATIENCE, MOST_PATIENCE = 0.05, 0.5
"""Seconds for which a server may be silent before others no longer wait for it, whatever the latest ones took."""
PATIENCE: Final = 3
"""How many times as long as the latest servers took it may be silent."""
WEIGHT: Final = 1 / 4
"""The weight of the latest server in the average of how long they took."""
SLOTS: Final = 2
"""Handshakes that always may compute, however busy the loop is."""
MOST_SLOTS: Final = 32
"""Handshakes that may compute at once at most."""
PACE: Final = 0.02
"""Seconds between two looks whether one more slot may be given, and whether those that hold one still compute."""
LATE: Final = 0.005
"""Seconds by which the loop may be late before it counts as busy."""
ELDER: Final = 4


@dataclass(slots=True)
class Admission:
    """What all dials of a controller share; `places` is how many may be under way."""

    places: int = PLACES
    _places: int = 0
    _ahead: int = 0
    _slots: int = 0
    _dials: "_Queue" = field(default_factory=lambda: _Queue())  # noqa: PLW0108 - below
    _handshakes: "_Queue" = field(default_factory=lambda: _Queue())  # noqa: PLW0108 - below
    _computing: "set[Permit]" = field(default_factory=set)
    _busy: bool = False
    _timer: asyncio.TimerHandle | None = None
    _usual: float = 0.0

    @property
    def patience(self) -> float:
        """Seconds for which a server may be silent before others no longer wait for it."""
        return min(MOST_PATIENCE, max(LEAST_PATIENCE, PATIENCE * self._usual))

    def permit(self, precedence: Precedence = FIRST) -> "Permit":
        """Return a permit that holds nothing yet."""
        return Permit(precedence, self)

    # --- places ---

    async def enter(self, permit: "Permit") -> None:
        """Wait for a place; see `Permit.acquire_place`."""
        waiting = self._dials.join(permit.precedence)
        self._fill_places()
        await self._dials.wait(waiting, self._give_place_back)
        permit.placed = permit.ahead = True
        loop = asyncio.get_running_loop()
        permit.began = loop.time()
        permit.fresh = loop.call_later(self.patience, self._overlook, permit)

    def _has_place(self, precedence: Precedence) -> bool:
        share = SHARES.get(precedence.rank, FAILING_SHARE)
        return self._ahead < AHEAD and self._places < self.places * share

    def _take_place(self) -> None:
        self._places += 1
        self._ahead += 1

    def _give_place_back(self) -> None:
        self._places -= 1
        self._ahead -= 1
        self._fill_places()

    def _fill_places(self) -> None:
        while self._dials.admit(self._has_place):
            self._take_place()

    def _overlook(self, permit: "Permit") -> None:
        """Count a dial no more among those that are about to need a slot."""
        permit.stop_timer()
        if permit.ahead:
            permit.ahead = False
            self._ahead -= 1
            self._fill_places()

    # --- slots ---

    async def compute(self, permit: "Permit") -> None:
        """Wait for a slot; see `Permit.acquire_slot`."""
        permit.stop_timer()
        if not permit.precedence.failing:
            self._usual += WEIGHT * (asyncio.get_running_loop().time() - permit.began - self._usual)
        if not permit.ahead:  # it spoke late
            permit.ahead = True
            self._ahead += 1
        waiting = self._handshakes.join(permit.precedence)
        if self._slots < SLOTS:
            self._fill_slot()
        self._start_timer()
        await self._handshakes.wait(waiting, self._give_slot_back)
        permit.slotted = True
        self._computing.add(permit)
        self._overlook(permit)

    def _give_slot_back(self) -> None:
        self._slots -= 1
        if self._slots < SLOTS or not self._busy:
            self._fill_slot()

    def _fill_slot(self) -> None:
        if self._handshakes.admit():
            self._slots += 1

    def _release_slot(self, permit: "Permit") -> None:
        if permit.slotted:
            permit.slotted = False
            self._computing.discard(permit)
            self._give_slot_back()

    def _start_timer(self) -> None:
        if self._timer is None and self._handshakes:
            loop = asyncio.get_running_loop()
            due = loop.time() + PACE
            self._timer = loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        """Take back the slots of silent servers, and give one more while the loop is on time."""
        self._timer = None
        self._busy = asyncio.get_running_loop().time() - due > LATE
        silent = round(self.patience / PACE)
        for permit in [one for one in self._computing if one.silent_checks() >= silent]:
            self._release_slot(permit)
        if not self._busy and self._slots < MOST_SLOTS:
            self._fill_slot()
        self._start_timer()

    # --- the end ---

    def leave(self, permit: "Permit") -> None:
        """Take everything back that a permit holds."""
        self._release_slot(permit)
        self._overlook(permit)
        if permit.placed:
            permit.placed = False
            self._places -= 1
            self._fill_places()


@dataclass(slots=True, eq=False)
class Permit:
    """What one dial holds; a context manager, which gives back all that is left at its end.

    Call `acquire_place` and `acquire_slot` in this order, once each; `end` at any time afterwards, and repeatedly.
    The fields are the admission's.
    """

    precedence: Precedence
    _admission: Admission
    began: float = 0.0
    placed: bool = False
    ahead: bool = False
    slotted: bool = False
    fresh: asyncio.TimerHandle | None = None
    _progress: ReceiveProgress | None = None
    _last: int = 0
    _silent: int = 0

    async def acquire_place(self) -> None:
        """Wait for a place; as long as others are let in first, each of which has its deadline."""
        await self._admission.enter(self)

    async def acquire_slot(self, progress: ReceiveProgress) -> None:
        """Wait for a slot, as long as others compute; called once the server has sent its first bytes."""
        self._progress = progress
        await self._admission.compute(self)

    def end(self) -> None:
        """Give everything back: the tunnel is up, or the dial is over."""
        self._admission.leave(self)

    def silent_checks(self) -> int:
        """Check for progress, and return for how many checks in a row the server has sent nothing."""
        count = 0 if self._progress is None else self._progress.receive_count()
        self._silent = self._silent + 1 if count == self._last else 0
        self._last = count
        return self._silent

    def stop_timer(self) -> None:
        """End the time for which the dial counts as fresh."""
        if self.fresh is not None:
            self.fresh.cancel()
            self.fresh = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


@dataclass(slots=True, eq=False)
class _Waiting:
    precedence: Precedence
    admitted: "asyncio.Future[None]"


class _Queue:
    """Dials that wait for one resource, by precedence and by age."""

    def __init__(self) -> None:
        self._by_age: OrderedDict[_Waiting, None] = OrderedDict()
        self._by_precedence: list[tuple[tuple[int, float], int, _Waiting]] = []  # a heap; may hold some that have left
        self._serial = itertools.count()
        self._picks = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def join(self, precedence: Precedence) -> _Waiting:
        """Let a dial wait from now on; the caller then awaits `wait`."""
        waiting = _Waiting(precedence, asyncio.get_running_loop().create_future())
        self._by_age[waiting] = None
        heapq.heappush(self._by_precedence, (precedence.key, next(self._serial), waiting))
        return waiting

    async def wait(self, waiting: _Waiting, give_back: Callable[[], None]) -> None:
        """Wait until `admit` picks this dial; where it is cancelled only after that, `give_back` is called."""
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
        """Admit the next dial; returns False where none waits, or none that is allowed.

        What is allowed for one must be allowed for all that precede it.
        """
        self._drop_done()
        if not self._by_age or not allowed((first := self._by_precedence[0][-1]).precedence):
            return False
        self._picks += 1
        eldest = next(iter(self._by_age))
        chosen = eldest if self._picks % ELDER == 0 and allowed(eldest.precedence) else first
        del self._by_age[chosen]
        chosen.admitted.set_result(None)
        return True

    def _drop_done(self) -> None:
        """Drop from both ends who was admitted, or cancelled, be it in this very turn of the loop."""
        heap = self._by_precedence
        while heap and heap[0][-1].admitted.done():
            heapq.heappop(heap)
        while self._by_age and (eldest := next(iter(self._by_age))).admitted.done():
            del self._by_age[eldest]
        if len(heap) > 2 * len(self._by_age) + MOST_SLOTS:
            self._by_precedence = [entry for entry in heap if not entry[-1].admitted.done()]
            heapq.heapify(self._by_precedence)


def places_for(descriptors: int) -> int:
    """Return how many dials may be under way in a process that may open so many descriptors."""
    return max(SLOTS, min(PLACES, descriptors // 4))
