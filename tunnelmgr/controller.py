"""The one loop that owns all state: take what happened, evolve the world, plan, act, have written down what changed.

The loop never waits for the disk. While the store writes, events are taken in and tunnels are closed and opened; only
an agent whose evidence has not been written yet is not dialled, so that no key is trusted for the first time before
that is on disk. Openings and searches are begun a few at a time: of a fleet that comes at once, the first tunnel does
not wait until the last agent is planned for, logged and written down.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, assert_never

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import (
    Event,
    EvidenceAbsent,
    EvidenceFound,
    KeyExamined,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.persistence import new_entries
from tunnelmgr.core.reconcile import (
    Action,
    CloseTunnel,
    ExamineKey,
    OpenTunnel,
    Search,
    SeekEvidence,
    begin,
    next_due,
    plan,
)
from tunnelmgr.core.tunnel import Phase, Up, Working
from tunnelmgr.core.world import HistoryEntry, Record, World
from tunnelmgr.store.writer import StateWriter, WritableStore

log = structlog.get_logger(__name__)

FEW, PART = 16, 1 / 32
"""Tunnels opened and keys asked for in one turn of the loop: so many, or such a part of those that are due."""
BREATHER = 0.1
"""Seconds that the next few wait, so that those already begun go on meanwhile."""
LULL = 1.0
"""Seconds that probes of standing tunnels wait for company."""
GATHER = 0.05
"""Seconds for which reports of progress wait for others while the store writes: each turn looks at every agent."""
REST = 3.0
"""How many times as long as the last turn took the ends of tunnels and retries wait for others: agents that fail again
and again then take at most a quarter of the loop's time for turns, whatever the fleet's size."""
QUIET = frozenset({Phase.AWAITING_IDENTITY, Phase.CONNECTING, Phase.DOWN})
"""The phases that an agent goes through again and again while it fails."""
PROGRESS = (EvidenceFound, EvidenceAbsent, KeyExamined, TunnelDialled, TunnelBound, TunnelProbed, TunnelEnded)
"""Reports of what the controller has begun itself; all other events are taken in at once."""


class Tunnels(Protocol):
    """Opens and closes tunnels; `tunnel/supervisor.py` does."""

    def open(self, action: OpenTunnel) -> None:
        """Start a worker."""
        ...

    def close(self, action: CloseTunnel) -> None:
        """End a worker."""
        ...


class EvidenceSearches(Protocol):
    """Searches for host key evidence; `daemon/evidence_searches.py` does."""

    def search(self, action: Search) -> None:
        """Start a search, which ends in an event."""
        ...


class HistoryListener(Protocol):
    """Receives what is new in the agents' histories; `daemon/audit_trail.py` does."""

    def history_grew(self, record: Record, entry: HistoryEntry) -> None:
        """Receive one entry; entries come in order."""
        ...


class NoHistoryListener:
    """Ignores what is new."""

    def history_grew(self, record: Record, entry: HistoryEntry) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Performers:
    """What performs the controller's actions, and reports back to it by events."""

    tunnels: Tunnels
    searches: EvidenceSearches

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
    """Seconds since the epoch that never jump: the wall clock at the start, carried on by the monotonic one."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        """Return the time now."""
        return time.monotonic() + self._offset


@dataclass(slots=True)
class Controller:
    """Owns the world. Others put events in by `report`, and read `world`, which is always whole.

    What performs its actions, and what listens to the histories, is given to `run`: both need the controller.
    """

    world: World
    store: WritableStore
    clock: Callable[[], float]
    _history: HistoryListener = field(default_factory=NoHistoryListener)
    _behind: bool = False
    _held: bool = False
    _took: float = 0.0
    _inbox: list[Event] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _lively: asyncio.Event = field(default_factory=asyncio.Event)
    _urgent: asyncio.Event = field(default_factory=asyncio.Event)
    _writer: StateWriter = field(init=False)

    def __post_init__(self) -> None:
        self._writer = StateWriter(self.store, self._written)

    @property
    def store_error(self) -> str | None:
        """Why the state is not being written, None if it is."""
        return self._writer.error

    def report(self, event: Event) -> None:
        """Tell the loop what happened; it is taken up in order."""
        self._inbox.append(event)
        self._news.set()
        if not self._is_routine(event):
            self._lively.set()
        if not self._can_wait(event):
            self._urgent.set()

    async def run(self, performers: Performers, history: HistoryListener) -> None:
        """Reconcile until a drain is complete."""
        self._history = history
        self._writer.start(self.world)
        try:
            async with asyncio.TaskGroup() as tasks:
                while not (self.world.draining and not _standing(self.world)):
                    self._turn(await self._events(), performers, tasks)
                await self._writer.finish(self.world)
        finally:
            self._writer.close()

    def _turn(self, events: list[Event], performers: Performers, tasks: asyncio.TaskGroup) -> None:
        began = time.perf_counter()
        self._take(events)
        self._reconcile(performers, tasks)
        self._took = time.perf_counter() - began

    async def _events(self) -> list[Event]:
        """Wait for something to do and return all that has happened until then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience()):
                await self._news.wait()
                await self._gather()
        events, self._inbox = self._inbox, []
        for flag in (self._news, self._lively, self._urgent):
            flag.clear()
        return events

    async def _gather(self) -> None:
        """Wait for events that can be taken in together, because each turn looks at every agent."""
        async with asyncio.timeout(LULL):
            await self._lively.wait()
        async with asyncio.timeout(GATHER if self._writer.busy else self._rest()):
            await self._urgent.wait()

    def _can_wait(self, event: Event) -> bool:
        """Tell whether an event may be taken in together with those that follow; an end or a reload may not."""
        return isinstance(event, PROGRESS if self._writer.busy else (TunnelEnded, TunnelProbed))

    def _rest(self) -> float:
        """Return the seconds that ends of tunnels and retries wait after a turn."""
        return min(GATHER, REST * self._took)

    def _written(self) -> None:
        """Take note that a write is over: what waited for it may go on, and one that failed is tried again later."""
        self._urgent.set()
        if self._held or self._writer.retry_in is not None or self._writer.is_behind(self.world):
            self._lively.set()
            self._news.set()

    def _is_routine(self, event: Event) -> bool:
        """Tell whether an event is one more probe of a tunnel that is up, and so changes nothing but its figures."""
        if not isinstance(event, TunnelProbed):
            return False
        return isinstance(self.world.tunnels.get(event.agent), Up)

    def _patience(self) -> float | None:
        """Return the seconds until something is due without an event; None if nothing is."""
        if self._behind:
            return BREATHER
        due = next_due(self.world)
        # What is held for a write is due already, and must not wake the loop again and again.
        waits = [] if due is None else [max(BREATHER if self._held else self._rest(), due - self.clock())]
        if (retry := self._writer.retry_in) is not None:
            waits.append(retry)
        return min(waits, default=None)

    def _take(self, events: list[Event]) -> None:
        before = self.world
        for event in events:
            self.world = evolve(self.world, event, self.clock())
        self._notice(before)

    def _notice(self, before: World) -> None:
        """Log changed phases and sources, and pass on what was added to the histories."""
        _log_phases(before, self.world)
        _log_missing(before, self.world)
        if before.records is not self.world.records:
            for record, moment in new_entries(before, self.world):
                if moment.is_news:
                    self._history.history_grew(record, moment)

    def _reconcile(self, performers: Performers, tasks: asyncio.TaskGroup) -> None:
        now = self.clock()
        actions = self._due(now)
        before = self.world
        self.world = begin(before, actions, now)
        _log_phases(before, self.world)
        for action in actions:
            performers.perform(action)
        self._writer.write(self.world, tasks)

    def _due(self, now: float) -> tuple[Action, ...]:
        """Return what is to be done in this turn: all closings, and the first few of the rest that may begin."""
        planned = plan(self.world, now)
        actions = tuple(action for action in planned if self._may_begin(action))
        self._held = len(actions) < len(planned)
        closings = sum(isinstance(action, CloseTunnel) for action in actions)
        few = max(FEW, int((len(actions) - closings) * PART))
        self._behind = closings + few < len(actions)
        return actions[: closings + few]

    def _may_begin(self, action: Action) -> bool:
        """Tell whether an action need not wait for the store: only a first dial by new evidence does."""
        return not isinstance(action, OpenTunnel) or self._writer.may_dial(self.world.records[action.agent])


def _standing(world: World) -> bool:
    """Tell whether any worker is still at it; a search for evidence is no reason to stay."""
    return any(isinstance(status, Working) for status in world.tunnels.values())


def _log_phases(before: World, after: World) -> None:
    """Log one line for each agent whose phase changed; of failures that repeat, fewer and fewer."""
    if before.tunnels is after.tunnels:
        return
    for id_, status in after.tunnels.items():
        old = before.tunnels.get(id_)
        if old is status or (old is not None and old.phase is status.phase):
            continue
        history = after.records[id_].history
        if status.phase in QUIET and history and not history[-1].is_news:
            continue
        _log_phase(id_, old.phase.value if old else None, after)
    for id_ in before.tunnels.keys() - after.tunnels.keys():
        log.info("agent gone", agent=id_)


def _log_missing(before: World, after: World) -> None:
    """Log when agents begin to be missing from a source's listing, and when none is any more."""
    if before.sources is after.sources:
        return
    for name, view in after.sources.items():
        was = before.sources.get(name, view).missing
        if view.missing and not was:
            log.warning("listing lacks agents", source=name, missing=view.missing, error=view.error)
        elif was and not view.missing:
            log.info("listing lacks no agents", source=name)


def _log_phase(id_: AgentId, was: str | None, world: World) -> None:
    status = world.tunnels[id_]
    facts = {"agent": id_, "phase": status.phase.value, "was": was}
    if status.error:
        facts |= {"code": status.error, "error": status.message}
    if status.phase.value == "quarantined":
        log.error("phase", **facts)
    else:
        log.info("phase", **facts)
