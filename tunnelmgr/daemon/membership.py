"""This controller as a member of a cluster: it renews its heartbeat, and exchanges leases and events with the others.

    world ─▶ what this member requests ─▶ one transaction in the database ─▶ what is new ─▶ events for the controller

A turn comes at least every `TICK` seconds, and at once after another member's notification or a step of an agent here.
If the database does not answer for as long as a lease lasts, the member is isolated: its tunnels stand, nothing new
begins, and it polls all sources itself, so that agents that have ended are still revoked.
"""

import asyncio
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol

import structlog

from tunnelmgr import __version__
from tunnelmgr.config import ControllerConfig
from tunnelmgr.controller import Controller
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.cluster_messages import Discovered, Incoming, Outgoing, merged
from tunnelmgr.core.events import (
    AgentEnded,
    AgentsDiscovered,
    ClusterChanged,
    DiscoveryFailed,
    Event,
    FeedClosed,
    FeedReported,
    StateShared,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
)
from tunnelmgr.core.evolve.shared import new_seeds
from tunnelmgr.core.lease_requests import Situation, agent_holdings, forgotten, requested, unstored_quarantines
from tunnelmgr.core.ownership import LEASE_SECONDS, LeaseChange, Member, Step
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.world import Record, World
from tunnelmgr.daemon.outbox import Outbox
from tunnelmgr.daemon.source_watches import SourceWatches
from tunnelmgr.daemon.unreachable import Unreachable
from tunnelmgr.errors import StoreError
from tunnelmgr.observability.systemd import extend_timeout
from tunnelmgr.store.connect import sqlite_file
from tunnelmgr.threads import CallingThread

log = structlog.get_logger(__name__)

TICK: Final = 0.5
"""Seconds between two heartbeats."""
SHORTEST: Final = 0.1
"""Seconds between two turns at least, however often others notify: turns must not take the time of the handshakes."""
SAFETY: Final = 2.0
"""Seconds before the end of its lease at which a member no longer relies on it: a frozen process wakes up late."""
REBALANCE_SECONDS: Final = 600.0
"""Seconds after which a rebalance ends, also if a member cannot reach an agent that it should have."""
STOPPING: Final = 10.0
"""Seconds that a stop may take beside its handover and its drain."""
SourceEvent = AgentsDiscovered | DiscoveryFailed | AgentEnded | FeedReported | FeedClosed


class MemberDatabase(Protocol):
    """Where members meet; every method blocks and raises StoreError. `store/cluster_database.py` is one."""

    def join(self) -> None:
        """Become a member."""
        ...

    def tick(self, outgoing: Outgoing) -> Incoming:
        """Renew the heartbeat, apply what is requested, and return what is new."""
        ...

    def leave(self) -> None:
        """End being a member."""
        ...


class MemberNotifications(Protocol):
    """Other members' notifications; `store/notifications.py`."""

    def start(self, notify: Callable[[], object]) -> None:
        """Begin to listen; `notify` is called in another thread."""
        ...

    def stop(self) -> None:
        """Listen no more."""
        ...


class Membership:
    """One member's part in the cluster, and the sink of its sources' and workers' events."""

    def __init__(
        self, me: Member, controller: Controller, database: MemberDatabase, notifications: MemberNotifications
    ) -> None:
        self._me = me
        self._controller = controller
        self._database = database
        self._notifications = notifications
        self._thread = CallingThread("cluster")
        self._wake = asyncio.Event()
        self._turned = asyncio.Event()
        self._outbox = Outbox()
        self._unreachable = Unreachable()
        self._leaving = False
        self._rebalance_until = 0.0
        self.cluster = Cluster(me.name)
        """The cluster as the database had it last; the controller's world follows."""
        self.isolation_limit = 0.0
        """Seconds without the database after which this member ends its tunnels; 0 means never."""

    def follow(self, rules: str, isolation_limit: float) -> None:
        """Switch to a configuration; `rules` is a digest of what all members must agree on."""
        self._me = replace(self._me, rules=rules)
        self.isolation_limit = isolation_limit
        self._wake.set()

    async def join(self, sources: SourceWatches) -> None:
        """Become a member; raises StoreError, also if a living member has this name."""
        self._thread.start()
        sources.select(frozenset())
        await self._thread.call(self._database.join)

    async def run(self, sources: SourceWatches) -> None:
        """Exchange with the others until cancelled."""
        loop = asyncio.get_running_loop()
        self._notifications.start(lambda: loop.call_soon_threadsafe(self._wake.set))
        try:
            while True:
                await self._turn(sources)
                self._turned.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK):
                        await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(SHORTEST)
        finally:
            self._notifications.stop()
            self._thread.close()

    async def leave(self) -> None:
        """Tell the others that this member has ended; without the database they notice by themselves."""
        with suppress(StoreError):
            await self._thread.call(self._database.leave)

    async def hand_over(self, seconds: float) -> None:
        """Offer all agents to the other members, and wait until they have taken them.

        Gives up once none has been taken for `seconds`. The service manager's patience is extended meanwhile.
        """
        self._leaving = True
        self._me = replace(self._me, draining=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for _ in range(2):  # the first may have started before, and a member may have joined since
                    self._wake.set()
                    await self._next_turn()
            held = self._held()
            while held and self._has_successors():
                extend_timeout(2 * seconds + STOPPING)
                async with asyncio.timeout(seconds):
                    while self._held() >= held and self._has_successors():
                        await self._next_turn()
                held = self._held()

    def rebalance(self) -> int:
        """Move every agent to the member that would get it if nobody held it, a few at a time; return how many."""
        self._rebalance_until = self._controller.clock() + REBALANCE_SECONDS
        self._wake.set()
        return self._misplaced()

    def drain(self, member: str, *, on: bool) -> None:
        """Have a member hand its agents over and take no others, or end that; raises ValueError for an unknown one."""
        if member not in self.cluster.members:
            raise ValueError(f"{member!r} is not a member; members: {', '.join(self.cluster.members)}")
        self._outbox.drain(member, on=on)
        self._wake.set()

    def request(self, agent: AgentId, event: Event) -> None:
        """Send an operator's request to the member that holds the agent."""
        self._outbox.request(agent, event)
        self._wake.set()

    def report(self, event: Event) -> None:
        """Pass an event on to the controller, and to the other members what a source said."""
        self._controller.report(event)
        if isinstance(event, TunnelDialled | TunnelBound | TunnelEnded):
            self._unreachable.note(event, self._controller.clock())
            self._wake.set()  # it may advance a handover
        if isinstance(event, SourceEvent) and self._polls_for_all(event.source):
            whole = isinstance(event, AgentsDiscovered) and not event.snapshot.failures
            self._outbox.discover(Discovered(event.source, event, whole))
            self._wake.set()

    async def _next_turn(self) -> None:
        self._turned.clear()
        await self._turned.wait()

    def _world(self) -> World:
        return replace(self._controller.world, cluster=self.cluster)

    def _polls_for_all(self, source: str) -> bool:
        lease = self.cluster.sources.get(source)
        return lease is not None and lease.holder == self._me.name

    def _held(self) -> int:
        return sum(lease.holder == self._me.name for lease in self.cluster.agents.values())

    def _has_successors(self) -> bool:
        others = (member for name, member in self.cluster.members.items() if name != self._me.name)
        return any(member.alive and not member.draining for member in others)

    async def _turn(self, sources: SourceWatches) -> None:
        began, world = self._controller.clock(), self._world()
        unknown = forgotten(world, self.cluster)
        stored = bool(unknown or self._outbox.acting) and self._controller.has_written
        changes = self._changes(world, sources, unknown if stored else frozenset())
        outgoing = self._outbox.take(self._me, world, changes, stored=stored)
        try:
            incoming = await self._thread.call(self._database.tick, outgoing)
        except StoreError as failed:
            self._outbox.put_back(outgoing)
            self._on_silence(str(failed), sources)
            return
        if self.cluster.error is not None:
            log.info("database recovered")
        self._outbox.sent(outgoing, world)
        self._unreachable.offered({AgentId(one.id) for one in changes if one.step is Step.OFFER}, began)
        self._receive(incoming, began, sources)

    def _changes(self, world: World, sources: SourceWatches, unknown: AbstractSet[AgentId]) -> list[LeaseChange]:
        """Return the lease changes to request now; `unknown` are agents whose leases are to be released."""
        situation = Situation(self._me, unknown, self._unreachable.due(world, self._controller.clock()))
        changes = requested(world, sources.names, situation)
        if self._rebalance_until:
            changes += agent_holdings(world, self.cluster, situation).rebalanced()
        return changes

    def _on_silence(self, error: str, sources: SourceWatches) -> None:
        """Continue without the database: nothing new begins once the leases may have ended."""
        if self.cluster.error is None:
            log.error("database lost", error=error)
        silent = self._controller.clock() - self.cluster.expires
        if silent > 0:
            sources.select(None)
        isolated = self.isolation_limit > 0 and silent > self.isolation_limit - LEASE_SECONDS + SAFETY
        self._change(replace(self.cluster, error=error, isolated=isolated))

    def _receive(self, incoming: Incoming, began: float, sources: SourceWatches) -> None:
        """Report what is new: an agent that was taken over is known as its holder left it before it is held."""
        before, cluster = self.cluster, merged(self.cluster, incoming, began + LEASE_SECONDS - SAFETY)
        lost = {id_ for id_ in incoming.agents if before.holds(id_) and not cluster.holds(id_)}
        for quarantined in unstored_quarantines(self._controller.world, self._controller.written, lost):
            self._outbox.request(quarantined.agent, quarantined)
        for event in incoming.discovered:
            self._controller.report(event)
        self._adopt([one for one in incoming.records if one.agent.id not in lost], incoming.seeds)
        self._me = replace(self._me, draining=self._leaving or cluster.members[self._me.name].to_drain)
        self._change(cluster, frozenset(id_ for id_ in incoming.agents if not before.serves(id_)))
        self._adopt([one for one in incoming.records if one.agent.id in lost])
        # By the members as they are now: one may have joined just before the request.
        if self._rebalance_until and (began > self._rebalance_until or not self._misplaced()):
            self._rebalance_until = 0.0
        for number, event in incoming.requests:
            if number not in self._outbox.acting:
                self._outbox.acting.add(number)
                self._controller.report(event)
        sources.select(frozenset(name for name, lease in cluster.sources.items() if lease.holder == self._me.name))
        if incoming.accepted or self._outbox.acting:
            self._wake.set()

    def _adopt(self, records: Sequence[Record], seeds: Sequence[Seed] = ()) -> None:
        new = new_seeds(self._controller.world, seeds)
        if records or new:
            self._controller.report(StateShared(tuple(records), new))

    def _misplaced(self) -> int:
        return agent_holdings(self._world(), self.cluster, Situation(self._me)).misplaced()

    def _change(self, cluster: Cluster, moved: frozenset[AgentId] = frozenset()) -> None:
        self.cluster = cluster
        self._controller.report(ClusterChanged(cluster, moved))


def make_membership(settings: ControllerConfig, controller: Controller) -> Membership | None:
    """Return the membership of a controller whose state is in a database; None for one with a file."""
    if sqlite_file(settings.state) is not None:
        return None
    from tunnelmgr.store.cluster_database import ClusterDatabase  # noqa: PLC0415 - spares the usual case its import
    from tunnelmgr.store.notifications import Notifications  # noqa: PLC0415 - as above

    me = Member(settings.name, settings.zone, settings.capacity, __version__)
    controller.world = replace(controller.world, cluster=Cluster(me.name))  # without leases nothing begins
    return Membership(
        me,
        controller,
        ClusterDatabase(settings.state, me, settings.password_file),
        Notifications(settings.state, settings.name, settings.password_file),
    )
