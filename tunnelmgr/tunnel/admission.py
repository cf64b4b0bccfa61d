"""Admission control: which agents may be dialled now, and which handshakes may compute.

    waiting ──place──▶ connecting ──first bytes──▶ ready ──slot──▶ handshake ──first probe──▶ up
                       (TCP, and the server's              ◀──silent── (continues without a slot)
                        identification string)

There are two resources, because a dial has two different costs:

- A **place** is a descriptor and a little memory, from before TCP connects until the tunnel is up or the dial has
  failed. An agent that does not answer holds one until its deadline, so there are many. The last of them are reserved
  for agents that were up or are new: dead agents cannot use up what working ones need.
- A **slot** is CPU. A handshake takes tens of milliseconds of CPU time, here and on the agent. If a whole fleet began
  at once, all handshakes would end together, at the end. There are always `MIN_SLOTS`, and one more is added per
  `SLOT_CHECK_INTERVAL` while the loop is on time. A slot is granted only once the server has sent its first bytes. It
  is taken back if handshakes wait and the server is silent, because nothing is computed then.

Dials begin a few ahead of the free slots (`DIALS_AHEAD`), so that servers prepare their first bytes while others
compute.

A server counts as silent after a multiple of the time that recent servers took to send their first bytes (`patience`).
A fixed time would be too short if all agents are slow, as on an overloaded host: more and more handshakes would be
admitted, and each would become slower. A silent server no longer delays the next dial or handshake.

Both queues (`wait_queue`) are ordered by `core/precedence.py`, and every fourth admission goes to the dial that has
waited longest.
"""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from tunnelmgr.core.health import DialCounts
from tunnelmgr.core.precedence import FIRST, NEW, PROVEN, Precedence
from tunnelmgr.ssh.permit import ReceiveProgress
from tunnelmgr.tunnel.wait_queue import WaitQueue

MAX_PLACES: Final = 1024
"""Concurrent dials, in any state: a sixteenth of the descriptors that the systemd unit grants."""
PLACE_SHARES: Final = {PROVEN: 1.0, NEW: 7 / 8}
"""The fraction of all places up to which agents of a rank are admitted."""
FAILING_PLACE_SHARE: Final = 1 / 2
"""The same for agents that keep failing."""
DIALS_AHEAD: Final = 4
"""Dials that have just started, or whose server has sent its first bytes and that wait for a slot."""
MIN_PATIENCE, MAX_PATIENCE = 0.05, 0.5
"""Bounds of `Admission.patience`, in seconds."""
PATIENCE_FACTOR: Final = 3
"""A server is silent after this many times the average time of recent servers."""
LATEST_WEIGHT: Final = 1 / 4
"""The weight of the latest server in that average."""
MIN_SLOTS: Final = 2
"""Handshakes that may always compute, even if the loop is busy."""
MAX_SLOTS: Final = 32
"""Handshakes that may compute at once."""
SLOT_CHECK_INTERVAL: Final = 0.02
"""Seconds between two checks whether to add a slot, and whether the holders of slots still compute."""
BUSY_LAG: Final = 0.005
"""Seconds by which the loop is late if it counts as busy."""


@dataclass(slots=True)
class Admission:
    """What all dials of a controller share; `places` is the maximum of concurrent dials."""

    places: int = MAX_PLACES
    _places: int = 0
    _ahead: int = 0
    _slots: int = 0
    _dials: WaitQueue = field(default_factory=WaitQueue)
    _handshakes: WaitQueue = field(default_factory=WaitQueue)
    _computing: "set[Permit]" = field(default_factory=set)
    _busy: bool = False
    _timer: asyncio.TimerHandle | None = None
    _first_bytes_average: float = 0.0  # seconds

    @property
    def patience(self) -> float:
        """Seconds after which a server counts as silent."""
        return min(MAX_PATIENCE, max(MIN_PATIENCE, PATIENCE_FACTOR * self._first_bytes_average))

    def counts(self) -> DialCounts:
        """Return how many dials wait, and how many were admitted and are not over."""
        return DialCounts(len(self._dials), len(self._handshakes), self._places)

    def permit(self, precedence: Precedence = FIRST) -> "Permit":
        """Return a permit that holds nothing yet."""
        return Permit(precedence, self)

    # --- places ---

    async def acquire_place(self, permit: "Permit") -> None:
        """Wait for a place; see `Permit.acquire_place`."""
        waiting = self._dials.join(permit.precedence)
        self._fill_places()
        await self._dials.wait(waiting, self._give_place_back)
        permit.placed = permit.ahead = True
        loop = asyncio.get_running_loop()
        permit.began = loop.time()
        permit.ahead_timer = loop.call_later(self.patience, self._end_ahead, permit)

    def _has_place(self, precedence: Precedence) -> bool:
        share = PLACE_SHARES.get(precedence.rank, FAILING_PLACE_SHARE)
        return self._ahead < DIALS_AHEAD and self._places < self.places * share

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

    def _end_ahead(self, permit: "Permit") -> None:
        """Count a dial no longer among those that are about to need a slot."""
        permit.stop_timer()
        if permit.ahead:
            permit.ahead = False
            self._ahead -= 1
            self._fill_places()

    # --- slots ---

    async def acquire_slot(self, permit: "Permit") -> None:
        """Wait for a slot; see `Permit.acquire_slot`."""
        permit.stop_timer()
        if not permit.precedence.failing:
            took = asyncio.get_running_loop().time() - permit.began
            self._first_bytes_average += LATEST_WEIGHT * (took - self._first_bytes_average)
        if not permit.ahead:  # the server was slow
            permit.ahead = True
            self._ahead += 1
        waiting = self._handshakes.join(permit.precedence)
        if self._slots < MIN_SLOTS:
            self._fill_slot()
        self._start_timer()
        await self._handshakes.wait(waiting, self._give_slot_back)
        permit.slotted = True
        self._computing.add(permit)
        self._end_ahead(permit)

    def _give_slot_back(self) -> None:
        self._slots -= 1
        if self._slots < MIN_SLOTS or not self._busy:
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
            due = loop.time() + SLOT_CHECK_INTERVAL
            self._timer = loop.call_at(due, self._check_slots, due)

    def _check_slots(self, due: float) -> None:
        """Take back the slots of silent servers, and add one while the loop is on time."""
        self._timer = None
        self._busy = asyncio.get_running_loop().time() - due > BUSY_LAG
        max_silent_checks = round(self.patience / SLOT_CHECK_INTERVAL)
        for permit in [one for one in self._computing if one.silent_checks() >= max_silent_checks]:
            self._release_slot(permit)
        if not self._busy and self._slots < MAX_SLOTS:
            self._fill_slot()
        self._start_timer()

    # --- the end ---

    def release(self, permit: "Permit") -> None:
        """Take back everything that a permit holds."""
        self._release_slot(permit)
        self._end_ahead(permit)
        if permit.placed:
            permit.placed = False
            self._places -= 1
            self._fill_places()


@dataclass(slots=True, eq=False)
class Permit:
    """What one dial holds; a context manager that releases everything at its end.

    Call `acquire_place` and `acquire_slot` in this order, once each; `end` at any time afterwards, and repeatedly. The
    public fields belong to the admission.
    """

    precedence: Precedence
    _admission: Admission
    began: float = 0.0
    placed: bool = False
    ahead: bool = False
    slotted: bool = False
    ahead_timer: asyncio.TimerHandle | None = None
    _progress: ReceiveProgress | None = None
    _last_count: int = 0
    _silent_checks: int = 0

    async def acquire_place(self) -> None:
        """Wait for a place, as long as other dials come first, each of which has its deadline."""
        await self._admission.acquire_place(self)

    async def acquire_slot(self, progress: ReceiveProgress) -> None:
        """Wait for a slot, as long as others compute; called once the server has sent its first bytes."""
        self._progress = progress
        await self._admission.acquire_slot(self)

    def end(self) -> None:
        """Release everything: the tunnel is up, or the dial is over."""
        self._admission.release(self)

    def elapsed(self) -> float:
        """Return the seconds since the dial got its place."""
        return asyncio.get_running_loop().time() - self.began

    def silent_checks(self) -> int:
        """Check for progress, and return for how many checks in a row the server has sent nothing."""
        count = 0 if self._progress is None else self._progress.receive_count()
        self._silent_checks = self._silent_checks + 1 if count == self._last_count else 0
        self._last_count = count
        return self._silent_checks

    def stop_timer(self) -> None:
        """Stop the timer after which the dial no longer counts as ahead."""
        if self.ahead_timer is not None:
            self.ahead_timer.cancel()
            self.ahead_timer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def places_for(descriptors: int) -> int:
    """Return the maximum of concurrent dials in a process that may open this many descriptors."""
    return max(MIN_SLOTS, min(MAX_PLACES, descriptors // 4))
