"""The one loop that owns all state: take what happened, evolve the world, plan, act, write down what changed.

Closings come before the writing, so that a slow disk delays no revocation; openings after it, so that no key is
trusted for the first time before that is written. Openings and searches are begun a few at a time: of a fleet that
comes at once, the first tunnel does not wait until the last agent is planned for, logged and written down.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, assert_never

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.changes import Changes, changes, moments
from tunnelmgr.core.events import Event, TunnelProbed
from tunnelmgr.core.evolve import evolve
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
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import Moment, Record, World
from tunnelmgr.errors import StoreError

log = structlog.get_logger(__name__)

FEW, PART = 16, 1 / 32
"""Tunnels opened and keys asked for in one turn of the loop: so many, or such a part of those that are due."""
BREATHER = 0.1
"""Seconds that the next few wait, so that those already begun go on meanwhile."""
LULL = 1.0
"""Seconds that probes of standing tunnels wait for company."""
STORE_RETRY = 5.0
"""Seconds between tries while the state cannot be written."""


class Tunnels(Protocol):
    """What opens and closes tunnels."""

    def open(self, action: OpenTunnel) -> None:
        """Start a worker."""
        ...

    def close(self, action: CloseTunnel) -> None:
        """End one."""
        ...


class Store(Protocol):
    """What writes state down; blocks."""

    def write(self, changes: Changes) -> None:
        """Write all or nothing; raises StoreError."""
        ...


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

    `witness` is told each moment that is added to an agent's story, in order.
    """

    world: World
    store: Store
    tunnels: Tunnels
    seek: Callable[[Search], None]
    clock: Callable[[], float]
    witness: Callable[[Record, Moment], None] = lambda _record, _moment: None
    store_error: str | None = None
    _behind: bool = False
    _inbox: list[Event] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _urgent: asyncio.Event = field(default_factory=asyncio.Event)
    _written: World = field(default_factory=World)

    def report(self, event: Event) -> None:
        """Tell the loop what happened; it is taken up in order."""
        self._inbox.append(event)
        self._news.set()
        if not self._is_routine(event):
            self._urgent.set()

    async def run(self) -> None:
        """Reconcile until a drain is complete."""
        self._written = self.world
        while not (self.world.draining and not _standing(self.world)):
            self._take(await self._events())
            await self._reconcile()

    async def _events(self) -> list[Event]:
        """Wait for something to do and return all that has happened until then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience()):
                await self._news.wait()
                # Alone they can wait a little for each other: each turn looks at every agent.
                async with asyncio.timeout(LULL):
                    await self._urgent.wait()
        events, self._inbox = self._inbox, []
        self._news.clear()
        self._urgent.clear()
        return events

    def _is_routine(self, event: Event) -> bool:
        """Tell whether an event is one more probe of a tunnel that is up, and so changes nothing but its figures."""
        if not isinstance(event, TunnelProbed):
            return False
        status = self.world.tunnels.get(event.agent)
        return status is not None and status.phase is Phase.UP

    def _patience(self) -> float | None:
        """Return the seconds until something is due without an event; None if nothing is."""
        if self._behind:
            return BREATHER
        due = next_due(self.world)
        waits = [] if due is None else [max(0.0, due - self.clock())]
        if self.store_error is not None:
            waits.append(STORE_RETRY)
        return min(waits, default=None)

    def _take(self, events: list[Event]) -> None:
        before = self.world
        for event in events:
            self.world = evolve(self.world, event, self.clock())
        self._notice(before)

    def _notice(self, before: World) -> None:
        """Log changed phases and sources, and tell the witness what was added to the stories."""
        _log_phases(before, self.world)
        _log_missing(before, self.world)
        if before.records is not self.world.records:
            for record, moment in moments(before, self.world):
                self.witness(record, moment)

    async def _reconcile(self) -> None:
        now = self.clock()
        actions = self._due(now)
        before = self.world
        self.world = begin(before, actions, now)
        _log_phases(before, self.world)
        for action in actions:
            if not isinstance(action, OpenTunnel):
                self._perform(action)
        await self._write()
        for action in actions:
            if isinstance(action, OpenTunnel):
                self._perform(action)

    def _due(self, now: float) -> tuple[Action, ...]:
        """Return what is to be done in this turn: all closings, and the first few of the rest."""
        actions = plan(self.world, now)
        closings = sum(isinstance(action, CloseTunnel) for action in actions)
        few = max(FEW, int((len(actions) - closings) * PART))
        self._behind = closings + few < len(actions)
        return actions[: closings + few]

    def _perform(self, action: Action) -> None:
        match action:
            case OpenTunnel():
                self.tunnels.open(action)
            case CloseTunnel():
                self.tunnels.close(action)
            case SeekEvidence() | ExamineKey():
                self.seek(action)
            case _:
                assert_never(action)

    async def _write(self) -> None:
        """Write what changed since the last success; a failure is kept, shown, and tried again."""
        world = self.world
        due = changes(self._written, world)
        if not due:
            return
        try:
            await asyncio.to_thread(self.store.write, due)
        except StoreError as failed:
            if self.store_error is None:
                log.error("state cannot be written; tunnels go on", error=str(failed))  # noqa: TRY400 - no trace needed
            self.store_error = str(failed)
        else:
            if self.store_error is not None:
                log.info("state is written again")
            self.store_error = None
            self._written = world


def _standing(world: World) -> bool:
    """Tell whether any worker is still at it; a search for evidence is no reason to stay."""
    return any(status.working and status.spec is not None for status in world.tunnels.values())


def _log_phases(before: World, after: World) -> None:
    """Log one line for each agent whose phase changed."""
    if before.tunnels is after.tunnels:
        return
    for id_, status in after.tunnels.items():
        old = before.tunnels.get(id_)
        if old is status or (old is not None and old.phase is status.phase):
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
