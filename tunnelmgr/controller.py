"""The one loop that owns all state: take the events, evolve the world, plan, act, and have the changes written.

The loop never waits for the disk. While the store writes, it takes events, and closes and opens tunnels. Only an agent
whose evidence is not written yet has to wait, so that no key is trusted for the first time before that is on disk.
Each turn begins a few openings and searches only: if a whole fleet appears at once, the first tunnel does not wait
until the last agent is planned for, logged and written.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol, assert_never

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import (
    ClusterChanged,
    Event,
    EvidenceAbsent,
    EvidenceFound,
    KeyExamined,
    LoginKeyTested,
    StateShared,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.evolve.tunnels import probed_again
from tunnelmgr.core.persistence import new_entries
from tunnelmgr.core.reconcile import (
    Action,
    CloseTunnel,
    Due,
    ExamineKey,
    OpenTunnel,
    Search,
    SeekEvidence,
    begin,
    first_in_order,
    next_due,
    plan,
)
from tunnelmgr.core.tunnel import Phase, TunnelStatus, Up, Working
from tunnelmgr.core.world import HistoryEntry, Record, World
from tunnelmgr.store.writer import StateWriter, WritableStore

log = structlog.get_logger(__name__)

MIN_OPENINGS, OPENINGS_SHARE = 16, 1 / 32
"""Openings and searches started in one turn of the loop: the larger of this number and this share of those due."""
OPENINGS_INTERVAL = 0.1
"""Seconds until the next openings and searches, in which those already started can proceed."""
PROBE_BATCHING = 1.0
"""Seconds for which probes of tunnels that are up are collected: each turn examines every agent."""
REPORT_BATCHING = 0.05
"""Seconds for which reports of progress, and retries, are collected while the store writes; otherwise the most."""
BATCHING_FACTOR = 3.0
"""How many times the duration of the last turn they are collected for: a fleet that comes up, or fails repeatedly, then
causes turns for about a quarter of the loop's time, regardless of its size."""
RETRY_PHASES = frozenset({Phase.AWAITING_IDENTITY, Phase.CONNECTING, Phase.DOWN})
"""The phases that an agent passes through repeatedly while it fails."""
PROGRESS = (
    EvidenceFound,
    EvidenceAbsent,
    KeyExamined,
    TunnelDialled,
    TunnelBound,
    TunnelProbed,
    LoginKeyTested,
    TunnelEnded,
)
"""Reports of what the controller has started itself; the loop takes all other events at once."""


class Tunnels(Protocol):
    """Opens and closes tunnels; `tunnel/supervisor.py` does."""

    def open(self, action: OpenTunnel) -> None:
        """Start a worker."""
        ...

    def close(self, action: CloseTunnel) -> None:
        """End a worker."""
        ...


class Searches(Protocol):
    """Searches for host key evidence; `daemon/evidence_searches.py` does."""

    def search(self, action: Search) -> None:
        """Start a search, which ends in an event."""
        ...


class AgentListener(Protocol):
    """Receives what is new about agents; `daemon/agent_news.py` does."""

    def history_grew(self, record: Record, entry: HistoryEntry) -> None:
        """Receive one entry of a history; entries come in order."""
        ...

    def phase_changed(self, record: Record, was: Phase | None, status: TunnelStatus | None) -> None:
        """Receive a change that is logged; `was` is None for a new agent, `status` for one that was removed."""
        ...


class NoAgentListener:
    """Ignores what is new."""

    def history_grew(self, record: Record, entry: HistoryEntry) -> None:
        """Ignore it."""

    def phase_changed(self, record: Record, was: Phase | None, status: TunnelStatus | None) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Performers:
    """What performs the controller's actions, and reports back to it by events."""

    tunnels: Tunnels
    searches: Searches

    def perform(self, action: Action) -> None:
        """Begin one action; returns at once."""
        match action:
            case OpenTunnel():
                self.tunnels.open(action)
            case CloseTunnel():
                self.tunnels.close(action)
            case SeekEvidence() | ExamineKey():
                self.searches.search(action)
            case _:
                assert_never(action)


class Clock:
    """Seconds since the epoch that never jump: the wall clock at the start, continued by the monotonic one."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Return the time now."""
        return time.monotonic() + self._offset


@dataclass(slots=True)
class Inbox:
    """Events that wait for the loop, and what the loop waits for."""

    _events: list[Event] = field(default_factory=list)
    _any: asyncio.Event = field(default_factory=asyncio.Event)
    _notable: asyncio.Event = field(default_factory=asyncio.Event)
    _urgent: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def empty(self) -> bool:
        """Whether no event waits."""
        return not self._events

    def put(self, event: Event, *, routine: bool, urgent: bool) -> None:
        """Add an event; a routine one starts no turn for `PROBE_BATCHING` seconds, an urgent one ends all waiting."""
        self._events.append(event)
        self._any.set()
        if not routine:
            self._notable.set()
        if urgent:
            self._urgent.set()

    def interrupt(self) -> None:
        """End the wait for events that could be taken together with those already here."""
        self._urgent.set()

    def wake(self) -> None:
        """Start a turn without an event."""
        self._notable.set()
        self._any.set()

    async def wait(self, batching: Callable[[], float]) -> None:
        """Wait for a reason to start a turn; `batching` returns for how many seconds to collect further events."""
        await self._any.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_BATCHING):
                await self._notable.wait()
            async with asyncio.timeout(batching()):
                await self._urgent.wait()

    def take(self) -> list[Event]:
        """Return the events so far, in order, and begin to collect the next."""
        events, self._events = self._events, []
        for flag in (self._any, self._notable, self._urgent):
            flag.clear()
        return events


@dataclass(slots=True)
class Controller:
    """Owns the world. Others put events in by `report`, and read `world`, which is always whole.

    What performs its actions, and what listens to it, is given to `run`: both need the controller.
    `_behind` says that a part of the plan waits for the next turn, `_held` that a part of it waits for the store.
    """

    world: World
    store: WritableStore
    clock: Callable[[], float]
    _listener: AgentListener = field(default_factory=NoAgentListener)
    _behind: bool = False
    _held: bool = False
    _turn_seconds: float = 0.0
    _inbox: Inbox = field(default_factory=Inbox)
    _writer: StateWriter = field(init=False)

    def __post_init__(self) -> None:
        self._writer = StateWriter(self.store, self._written)

    @property
    def store_error(self) -> str | None:
        """Why the state is not being written, None if it is."""
        return self._writer.error

    @property
    def written(self) -> World:
        """The world as the store has it."""
        return self._writer.written

    @property
    def has_written(self) -> bool:
        """Whether no event waits, and the store holds everything that is to be written."""
        return self._inbox.empty and self._writer.has_written(self.world)

    def report(self, event: Event) -> None:
        """Queue an event for the loop, which takes events in order."""
        self._inbox.put(event, routine=self._is_routine(event), urgent=not self._can_wait(event))

    async def run(self, performers: Performers, listener: AgentListener) -> None:
        """Reconcile until a drain is complete."""
        self._listener = listener
        self._writer.start(self.world)
        try:
            async with asyncio.TaskGroup() as tasks:
                while not (self.world.draining and not _has_workers(self.world)):
                    self._turn(await self._events(), performers, tasks)
                await self._writer.finish(self.world)
        finally:
            self._writer.close()

    def _turn(self, events: list[Event], performers: Performers, tasks: asyncio.TaskGroup) -> None:
        began = time.perf_counter()
        self._apply(events)
        self._reconcile(performers, tasks)
        self._turn_seconds = time.perf_counter() - began

    async def _events(self) -> list[Event]:
        """Wait for something to do and return the events until then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._next_turn_in()):
                await self._inbox.wait(self._batching)
        return self._inbox.take()

    def _can_wait(self, event: Event) -> bool:
        """Return whether the loop may collect further events before it takes this one."""
        return isinstance(event, PROGRESS)

    def _batching(self) -> float:
        """Return for how many seconds to collect events that can wait, and retries."""
        return REPORT_BATCHING if self._writer.busy else min(REPORT_BATCHING, BATCHING_FACTOR * self._turn_seconds)

    def _written(self) -> None:
        """Continue with what waited for a write that has ended, and try a failed one again later."""
        self._inbox.interrupt()
        if self._held or self._writer.retry_in is not None or self._writer.is_behind(self.world):
            self._inbox.wake()

    def _is_routine(self, event: Event) -> bool:
        """Return whether an event changes only figures: another probe of a tunnel that is up, or the same leases."""
        if isinstance(event, ClusterChanged):
            return self.world.cluster is not None and event.cluster.agents is self.world.cluster.agents
        return self._is_probed_again(event)

    def _is_probed_again(self, event: Event) -> bool:
        """Return whether an event is another probe of a tunnel that is up."""
        return isinstance(event, TunnelProbed) and isinstance(self.world.tunnels.get(event.agent), Up)

    def _next_turn_in(self) -> float | None:
        """Return the seconds until something is due without an event; None if nothing is."""
        if self._behind:
            return OPENINGS_INTERVAL
        due = next_due(self.world)
        # What waits for a write is due already, and must not wake the loop repeatedly.
        shortest = OPENINGS_INTERVAL if self._held else self._batching()
        waits = [] if due is None else [max(shortest, due - self.clock())]
        if (retry := self._writer.retry_in) is not None:
            waits.append(retry)
        return min(waits, default=None)

    def _apply(self, events: list[Event]) -> None:
        before = self.world
        for again, some in groupby(events, self._is_probed_again):
            if again:
                probes = (event for event in some if isinstance(event, TunnelProbed))
                self.world = probed_again(self.world, probes, self.clock())
                continue
            for event in some:
                if isinstance(event, StateShared):
                    self._notice(before)
                    self._writer.note_stored(event.records, event.seeds)
                self.world = evolve(self.world, event, self.clock())
                if isinstance(event, StateShared):
                    before = self.world  # what other members have written is not news: they have reported it
        self._notice(before)

    def _notice(self, before: World) -> None:
        """Log changed phases and sources, and pass on what was added to the histories."""
        _note_phases(before, self.world, self._listener)
        _log_missing(before, self.world)
        if before.records is not self.world.records:
            for record, entry in new_entries(before, self.world):
                if entry.is_news and not self.world.is_held_elsewhere(record.agent.id):
                    self._listener.history_grew(record, entry)

    def _reconcile(self, performers: Performers, tasks: asyncio.TaskGroup) -> None:
        now = self.clock()
        actions = plan(self.world, now, self._admit)
        before = self.world
        self.world = begin(before, actions, now)
        _note_phases(before, self.world, self._listener)
        for action in actions:
            performers.perform(action)
        self._writer.write(self.world, tasks)

    def _admit(self, due: list[Due]) -> Sequence[Due]:
        """Return the dials and searches to begin now; only a first dial by new evidence waits for the store."""
        shared = self.world.cluster is not None
        may_begin = [one for one in due if not one.is_dial or self._writer.may_dial(one.record, shared=shared)]
        self._held = len(may_begin) < len(due)
        count = max(MIN_OPENINGS, int(len(may_begin) * OPENINGS_SHARE))
        self._behind = count < len(may_begin)
        return first_in_order(count, may_begin)


def _has_workers(world: World) -> bool:
    """Return whether any worker has not ended; a drain does not wait for searches."""
    return any(isinstance(status, Working) for status in world.tunnels.values())


def _note_phases(before: World, after: World, listener: AgentListener) -> None:
    """Log and pass on each change of a phase; if failures repeat, only the 2nd, 4th, 8th and so on."""
    if before.tunnels is after.tunnels:
        return
    for id_, status in after.tunnels.items():
        old = before.tunnels.get(id_)
        if old is status or (old is not None and old.phase is status.phase):
            continue
        history = after.records[id_].history
        if status.phase in RETRY_PHASES and history and not history[-1].is_news:
            continue
        _log_phase(id_, old.phase.value if old else None, after)
        listener.phase_changed(after.records[id_], old.phase if old else None, status)
    for id_ in before.tunnels.keys() - after.tunnels.keys():
        log.info("agent removed", agent=id_)
        listener.phase_changed(before.records[id_], before.tunnels[id_].phase, None)


def _log_missing(before: World, after: World) -> None:
    """Log when a source's listing begins to lack agents, and when it is complete again."""
    if before.sources is after.sources:
        return
    for name, view in after.sources.items():
        was = before.sources.get(name, view).missing
        if view.missing and not was:
            log.warning("listing incomplete", source=name, missing=view.missing, error=view.error)
        elif was and not view.missing:
            log.info("listing complete", source=name)


def _log_phase(id_: AgentId, was: str | None, world: World) -> None:
    status = world.tunnels[id_]
    facts = {"agent": id_, "phase": status.phase.value, "was": was}
    if status.error:
        facts |= {"code": status.error, "error": status.message}
    if status.phase is Phase.QUARANTINED:
        log.error("phase changed", **facts)
    else:
        log.info("phase changed", **facts)
