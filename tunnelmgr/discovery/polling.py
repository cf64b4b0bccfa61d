"""Polling a source: in a thread, one poll at a time, with a deadline; a failure keeps the last snapshot.

Agents that a complete listing lacks are requested by id, if the source supports that (`FindsById`).
A source with a request budget may ask for a pause (`Paced`); wake-ups before its end are then skipped.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import structlog

from tunnelmgr.config import AgentSource
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import AgentsDiscovered, DiscoveryFailed
from tunnelmgr.core.missing_agents import with_answer
from tunnelmgr.core.ports import EventSink
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.errors import DiscoveryError
from tunnelmgr.threads import in_thread

log = structlog.get_logger(__name__)

POLL_TIMEOUT = 120.0
"""Seconds after which a poll without an answer has failed; the timeouts of the clients are shorter."""


@runtime_checkable
class Paced(Protocol):
    """A source that shares a request budget with other programs."""

    def pause(self) -> float:
        """Return by how many seconds beyond the interval to delay the next poll; called after each poll."""
        ...


@runtime_checkable
class FindsById(Protocol):
    """A source that can return the state of certain agents."""

    def find_by_id(self, agents: Sequence[Agent]) -> Snapshot:
        """Return the state of agents that a listing lacks; blocks, and raises DiscoveryError.

        `agents` are those that exist and still belong to the source, `gone` those that have ended, `outside` those that
        exist and were removed from it. Agents about which nothing is known are in none of these.
        """
        ...


class MissingLookup(Protocol):
    """Knows the agents that a source has listed before; `daemon/source_watches.py` implements it."""

    def missing_from(self, source: str, listing: Snapshot) -> Sequence[Agent]:
        """Return the agents of a source that its listing lacks; called in the source's thread."""
        ...


class NothingMissing:
    """Knows no agents, so a listing lacks none."""

    def missing_from(self, source: str, listing: Snapshot) -> Sequence[Agent]:  # noqa: ARG002 - as `MissingLookup`
        """Return no agent."""
        return ()


@dataclass(slots=True)
class Poller:
    """Polls one source at each wake-up and reports its answer; `missing` names the agents to request by id."""

    source: AgentSource
    events: EventSink
    wakeups: asyncio.Event = field(default_factory=asyncio.Event)
    timeout: float = POLL_TIMEOUT
    clock: Callable[[], float] = time.monotonic
    missing: MissingLookup = field(default_factory=NothingMissing)
    _paused_until: float = 0.0
    _failing: str | None = None
    _polling: bool = False

    def wake(self) -> None:
        """Poll the source again soon."""
        self.wakeups.set()

    async def run(self) -> None:
        """Poll now and at each wake-up that the source does not want skipped, until cancelled."""
        while True:
            await self.poll()
            await self._next_wakeup()

    async def _next_wakeup(self) -> None:
        """Wait for the next wake-up after a pause that the source asked for."""
        while True:
            await self.wakeups.wait()
            self.wakeups.clear()
            if self.clock() >= self._paused_until:
                return

    async def poll(self) -> None:
        """Poll the source once and report its answer or its failure."""
        name = self.source.config.name
        if self._polling:  # the poll that timed out is still running; a source is polled once at a time
            self._failed(f"no answer within {self.timeout:g} s")
            return
        try:
            async with asyncio.timeout(self.timeout):
                self._polling = True
                snapshot = await in_thread(self._ask, self.clock())
        except TimeoutError:
            self._failed(f"no answer within {self.timeout:g} s")
        except DiscoveryError as failed:
            self._failed(failed.reason)
        except Exception as broken:  # a bulkhead: a fault of a plug-in must not affect other sources
            log.exception("source crashed", source=name)
            self._failed(f"{broken!r}; see the traceback in the log")
        else:
            self._note("; ".join(snapshot.failures) or None)
            self.events.report(AgentsDiscovered(name, snapshot))

    def _ask(self, started: float) -> Snapshot:
        """Return the source's answer, and record the pause that it asks for, also after a failure; runs in a thread."""
        try:
            return listed(self.source, self.missing)
        finally:
            self._polling = False
            pause = self.source.pause() if isinstance(self.source, Paced) else 0.0
            # Wake-ups come an interval apart; the one nearest to an interval and a pause from now is used.
            self._paused_until = started + pause + self.source.config.poll / 2 if pause > 0 else 0.0

    def _failed(self, reason: str) -> None:
        self._note(reason)
        self.events.report(DiscoveryFailed(self.source.config.name, reason))

    def _note(self, failing: str | None) -> None:
        """Log a change between answering and failing, not every poll."""
        if failing == self._failing:
            return
        self._failing = failing
        if failing:
            log.warning("source failed", source=self.source.config.name, error=failing)
        else:
            log.info("source recovered", source=self.source.config.name)


def listed(source: AgentSource, missing: MissingLookup) -> Snapshot:
    """Return a source's listing, completed with the state of the agents that the listing lacks; blocks."""
    listing = source.discover()
    lacking = missing.missing_from(source.config.name, listing)
    if not lacking or not isinstance(source, FindsById):
        return listing
    try:
        return with_answer(listing, source.find_by_id(lacking))
    except DiscoveryError as failed:
        return replace(listing, failures=(failed.reason,))
