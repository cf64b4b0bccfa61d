"""One way to poll every source: in a thread, one at a time, with a deadline; a failure keeps the last snapshot.

Agents that a whole listing lacks are asked for by id, where the source can do that (`FindsById`).
A source whose requests are counted may ask for a pause (`Paced`); the bell's rings before its end are then skipped.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import structlog

from tunnelmgr.config import AgentSource
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import AgentsDiscovered, DiscoveryFailed, Event
from tunnelmgr.core.missing_agents import with_answer
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.errors import DiscoveryError
from tunnelmgr.threads import in_thread

log = structlog.get_logger(__name__)

PATIENCE = 120.0
"""Seconds after which a poll that has not answered is given up; the clients' own timeouts are shorter."""


@runtime_checkable
class Paced(Protocol):
    """A source that shares a budget of requests with others."""

    def pause(self) -> float:
        """Return how many seconds beyond the interval the next poll should wait; asked after each poll."""
        ...


@runtime_checkable
class FindsById(Protocol):
    """A source that can be asked for certain agents."""

    def find_by_id(self, agents: Sequence[Agent]) -> Snapshot:
        """Return what has become of agents that a listing lacks; blocks, and raises DiscoveryError.

        `agents` are those that are there and still belong to the source, `gone` those that have ended, `outside` those
        that are there and were taken out of it. Those of which nothing is known are in none of these.
        """
        ...


Missing = Callable[[str, Snapshot], Sequence[Agent]]
"""Names the agents of a source that a listing of it lacks."""


def nothing_missing(_source: str, _listing: Snapshot) -> tuple[Agent, ...]:
    """Ask for nobody."""
    return ()


@dataclass(slots=True)
class Poller:
    """Polls one source whenever `bell` is rung, and reports what it said; `missing` names who is to be asked for."""

    source: AgentSource
    report: Callable[[Event], None]
    wakeups: asyncio.Event = field(default_factory=asyncio.Event)
    patience: float = PATIENCE
    clock: Callable[[], float] = time.monotonic
    missing: Missing = nothing_missing
    _rests_until: float = 0.0
    _failing: str | None = None
    _asking: bool = False

    def wake(self) -> None:
        """Poll the source again soon."""
        self.wakeups.set()

    async def run(self) -> None:
        """Poll now and at each ring that the source does not want skipped, until cancelled."""
        while True:
            await self.poll()
            await self._rung()

    async def _rung(self) -> None:
        """Wait for the next ring that counts."""
        while True:
            await self.wakeups.wait()
            self.wakeups.clear()
            if self.clock() >= self._rests_until:
                return

    async def poll(self) -> None:
        """Ask the source once and report its answer, or that it gave none."""
        name = self.source.config.name
        if self._asking:  # the question that was given up is still under way; none is asked twice at a time
            self._failed(f"no answer within {self.patience:g} s")
            return
        try:
            async with asyncio.timeout(self.patience):
                self._asking = True
                snapshot = await in_thread(self._ask, self.clock())
        except TimeoutError:
            self._failed(f"no answer within {self.patience:g} s")
        except DiscoveryError as failed:
            self._failed(failed.reason)
        except Exception as broken:  # a bulkhead: sources are plug-ins, and one must not take the others down
            log.exception("source failed", source=name)
            self._failed(f"{broken!r}; the log has the trace")
        else:
            self._note("; ".join(snapshot.failures) or None)
            self.report(AgentsDiscovered(name, snapshot))

    def _ask(self, begun: float) -> Snapshot:
        """Have the source's answer, and then the pause that it wants, also after a failure; runs in the thread."""
        try:
            return listed(self.source, self.missing)
        finally:
            self._asking = False
            pause = self.source.pause() if isinstance(self.source, Paced) else 0.0
            # Rings come an interval apart; of these the one nearest to an interval and a pause from here counts.
            self._rests_until = begun + pause + self.source.config.poll / 2 if pause > 0 else 0.0

    def _failed(self, reason: str) -> None:
        self._note(reason)
        self.report(DiscoveryFailed(self.source.config.name, reason))

    def _note(self, failing: str | None) -> None:
        """Log a change between answering and failing once, not at every poll."""
        if failing == self._failing:
            return
        self._failing = failing
        if failing:
            log.warning("source fails; its last snapshot stays", source=self.source.config.name, error=failing)
        else:
            log.info("source answers again", source=self.source.config.name)


def listed(source: AgentSource, missing: Missing) -> Snapshot:
    """Return a source's listing, with what it says of the agents that the listing lacks; blocks."""
    listing = source.discover()
    lacking = missing(source.config.name, listing)
    if not lacking or not isinstance(source, FindsById):
        return listing
    try:
        return with_answer(listing, source.find_by_id(lacking))
    except DiscoveryError as failed:
        return replace(listing, failures=(failed.reason,))
