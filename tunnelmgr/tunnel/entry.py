"""Who may dial now: the newest agents first, and no more at a time than the loop bears.

- A new tunnel costs tens of milliseconds of computing, here and on the agent. Begun all at once, a fleet's handshakes
  would all end together, at the end; a few at a time, each is up in turn, and the tunnels that stand go on.
- Where the time goes by on the network instead, more are let in, one each `PACE`, as long as the loop is in time.
- The newest agent is let in first: a build waits for it. But every `ELDER`th time it is the one that has waited
  longest, so that nobody waits for ever.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

AT_ONCE: Final = 2
"""Dials that are always let in, however busy the loop is."""
MOST: Final = 32
"""Dials at once at most."""
PACE: Final = 0.02
"""Seconds between two looks whether one more may be let in."""
LATE: Final = 0.005
"""Seconds by which the loop may be late before it counts as busy."""
ELDER: Final = 4


@dataclass(slots=True)
class Turn:
    """The right to dial; given back by `end`, once or more often."""

    _entry: "Entry | None" = None

    def end(self) -> None:
        """Let somebody else in."""
        entry, self._entry = self._entry, None
        if entry is not None:
            entry._left()  # noqa: SLF001 - its own


@dataclass(slots=True)
class _Waiting:
    seen: float
    admitted: "asyncio.Future[None]"


@dataclass(slots=True)
class Entry:
    """The door that all dials of a controller go through."""

    _inside: int = 0
    _waiting: list[_Waiting] = field(default_factory=list)  # who has waited longest first
    _admissions: int = 0
    _busy: bool = False
    _bell: asyncio.TimerHandle | None = None

    async def turn(self, seen: float) -> Turn:
        """Wait for a turn; `seen` is when the agent was first seen, in seconds of any clock that all share.

        Waits as long as others are let in first, each of which has its deadline.
        """
        if self._inside < AT_ONCE and not self._waiting:
            self._inside += 1
            return Turn(self)
        waiting = _Waiting(seen, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wind()
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:
                self._left()  # let in at the very moment
            raise
        return Turn(self)

    def _left(self) -> None:
        self._inside -= 1
        if self._waiting and (self._inside < AT_ONCE or not self._busy):
            self._admit()

    def _admit(self) -> None:
        self._admissions += 1
        if self._admissions % ELDER == 0:
            chosen = self._waiting[0]
        else:
            chosen = max(self._waiting, key=lambda waiting: waiting.seen)
        self._waiting.remove(chosen)
        self._inside += 1
        chosen.admitted.set_result(None)

    def _wind(self) -> None:
        if self._bell is None:
            loop = asyncio.get_running_loop()
            due = loop.time() + PACE
            self._bell = loop.call_at(due, self._ring, due)

    def _ring(self, due: float) -> None:
        self._bell = None
        self._busy = asyncio.get_running_loop().time() - due > LATE
        if self._waiting and not self._busy and self._inside < MOST:
            self._admit()
        if self._waiting:
            self._wind()
