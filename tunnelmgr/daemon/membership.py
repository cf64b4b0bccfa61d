"""This controller as a member of a cluster: it renews its heartbeat, and exchanges leases and events with the others.

    world ─▶ what this member requests ─▶ one transaction in the database ─▶ what is new ─▶ events for the controller

A turn comes at least every `TICK` seconds, and at once after another member's notification or a step of an agent here.
If the database does not answer for as long as a lease lasts, the member is isolated: its tunnels stand, nothing new
begins, and it polls all sources itself, so that agents that have ended are still revoked.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from tunnelmgr import __version__
from tunnelmgr.config import ControllerConfig
from tunnelmgr.controller import Controller
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster, RemoteStatus
from tunnelmgr.core.cluster_messages import Discovered, Incoming, Outgoing
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
from tunnelmgr.core.lease_requests import agent_holdings, requested, statuses
from tunnelmgr.core.ownership import LEASE_SECONDS, Member
from tunnelmgr.core.world import World
from tunnelmgr.daemon.source_watches import SourceWatches
from tunnelmgr.errors import StoreError
from tunnelmgr.store.connect import sqlite_file
from tunnelmgr.threads import CallingThread

log = structlog.get_logger(__name__)

TICK: Final = 0.5
"""Seconds between two heartbeats."""
SHORTEST: Final = 0.1
"""Seconds between two turns at least, however often others notify: turns must not take the time of the handshakes."""
SAFETY: Final = 2.0
"""Seconds before the end of its lease at which a member no longer relies on it: a frozen process wakes up late."""
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


@dataclass(slots=True)
class Outbox:
    """What waits for the next turn."""

    discovered: list[Discovered] = field(default_factory=list)
    requests: list[tuple[AgentId, Event]] = field(default_factory=list)
    drains: dict[str, bool] = field(default_factory=dict)
    acting: set[int] = field(default_factory=set)
    """Requests of other members that the controller has received."""

    def take(self) -> "Outbox":
        """Return what waits, and begin again."""
        taken = Outbox(self.discovered, self.requests, self.drains, set(self.acting))
        self.discovered, self.requests, self.drains = [], [], {}
        return taken

    def put_back(self, taken: "Outbox") -> None:
        """Keep what could not be sent for the next turn, in order."""
        self.discovered[:0] = taken.discovered
        self.requests[:0] = taken.requests
        self.drains = taken.drains | self.drains


class Membership:
    """One member's part in the cluster, and the sink of its sources' and workers' events."""

    def __init__(
        self, me: Member, controller: Controller, database: MemberDatabase, notifications: MemberNotifications
    ) -> None:
        self._me = me
        self._leaving = False
        self._rebalancing = False
        self._controller = controller
        self._database = database
        self._notifications = notifications
        self._thread = CallingThread("cluster")
        self._wake = asyncio.Event()
        self._outbox = Outbox()
        self._told: dict[AgentId, RemoteStatus] = {}
        self._turned = asyncio.Event()
        self.cluster = Cluster(me.name)
        """The cluster as the database had it last; the controller's world follows."""
        self.isolation_limit: float | None = None
        """Seconds without the database after which this member ends its tunnels; None means never."""

    def follow(self, rules: str, isolation_limit: float | None) -> None:
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

        Gives up once none has been taken for `seconds`.
        """
        self._leaving = True
        self._me = replace(self._me, draining=True)
        self._wake.set()
        held = self._held()
        with suppress(TimeoutError):
            while held and self._has_successors():
                async with asyncio.timeout(seconds):
                    while self._held() >= held and self._has_successors():
                        self._turned.clear()
                        await self._turned.wait()
                held = self._held()

    def rebalance(self) -> int:
        """Move every agent to the member that would get it if nobody held it, a few at a time; return how many."""
        self._rebalancing = True
        self._wake.set()
        return agent_holdings(self._world(), self.cluster, self._me).misplaced()

    def drain(self, member: str, *, on: bool) -> None:
        """Have a member hand its agents over and take no others, or end that; raises ValueError for an unknown one."""
        if member not in self.cluster.members:
            raise ValueError(f"{member!r} is not a member; members: {', '.join(self.cluster.members)}")
        self._outbox.drains[member] = on
        self._wake.set()

    def request(self, agent: AgentId, event: Event) -> None:
        """Send an operator's request to the member that holds the agent."""
        self._outbox.requests.append((agent, event))
        self._wake.set()

    def report(self, event: Event) -> None:
        """Pass an event on to the controller, and to the other members what a source said."""
        self._controller.report(event)
        if isinstance(event, TunnelDialled | TunnelBound | TunnelEnded):
            self._wake.set()  # it may advance a handover
        if isinstance(event, SourceEvent) and self._polls_for_all(event.source):
            whole = isinstance(event, AgentsDiscovered) and not event.snapshot.failures
            self._outbox.discovered.append(Discovered(event.source, event, whole))
            self._wake.set()

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
        began = self._controller.clock()
        taken = self._outbox.take()
        outgoing = self._outgoing(taken, sources.names)
        try:
            incoming = await self._thread.call(self._database.tick, outgoing)
        except StoreError as failed:
            self._outbox.put_back(taken)
            self._on_silence(str(failed), sources)
            return
        if self.cluster.error is not None:
            log.info("database recovered")
        self._told |= outgoing.statuses
        self._outbox.acting -= set(outgoing.done)
        self._receive(incoming, began, sources)

    def _outgoing(self, taken: Outbox, sources: frozenset[str]) -> Outgoing:
        world = self._world()
        changes = requested(world, sources, self._me)
        if self._rebalancing:
            changes += agent_holdings(world, self.cluster, self._me).rebalanced()
        return Outgoing(
            draining=self._me.draining,
            rules=self._me.rules,
            changes=changes,
            statuses={id_: one for id_, one in statuses(world).items() if self._told.get(id_) != one},
            discovered=taken.discovered,
            requests=taken.requests,
            drains=taken.drains,
            # A request that was acted on is removed once its effect is stored.
            done=tuple(taken.acting) if taken.acting and self._controller.has_written else (),
        )

    def _on_silence(self, error: str, sources: SourceWatches) -> None:
        """Continue without the database: nothing new begins once the leases may have ended."""
        if self.cluster.error is None:
            log.error("database lost", error=error)
        self._told.clear()
        cluster, silent = replace(self.cluster, error=error), self._controller.clock() - self.cluster.expires
        if silent > 0:
            sources.select(None)
        if self.isolation_limit is not None and silent > self.isolation_limit - LEASE_SECONDS + SAFETY:
            cluster = replace(cluster, agents={})
        self._change(cluster)

    def _receive(self, incoming: Incoming, began: float, sources: SourceWatches) -> None:
        """Report what is new: first what others have written, so that an agent taken over is known as it is."""
        for event in incoming.discovered:
            self._controller.report(event)
        world = self._controller.world
        seeds = new_seeds(world, incoming.seeds)
        if incoming.records or seeds:
            self._controller.report(StateShared(incoming.records, seeds))
        cluster = merged(self.cluster, incoming, began + LEASE_SECONDS - SAFETY)
        self._me = replace(self._me, draining=self._leaving or cluster.members[self._me.name].to_drain)
        self._change(cluster)
        if self._rebalancing:  # by the members as they are now: one may have joined just before the request
            self._rebalancing = agent_holdings(self._world(), cluster, self._me).misplaced() > 0
        for number, event in incoming.requests:
            if number not in self._outbox.acting:
                self._outbox.acting.add(number)
                self._controller.report(event)
        held = frozenset(name for name, lease in cluster.sources.items() if lease.holder == self._me.name)
        sources.select(held)
        if incoming.accepted or self._outbox.acting:
            self._wake.set()

    def _change(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._controller.report(ClusterChanged(cluster))


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
        ClusterDatabase(settings.state, me, settings.state_password),
        Notifications(settings.state, settings.name, settings.state_password),
    )


def merged(before: Cluster, incoming: Incoming, expires: float) -> Cluster:
    """Return the cluster with what is new in it."""
    if incoming.complete:
        before = Cluster(before.me)
    return Cluster(
        me=before.me,
        members=incoming.members,
        agents={**before.agents, **incoming.agents} if incoming.agents else before.agents,
        sources={**before.sources, **incoming.sources} if incoming.sources else before.sources,
        remote={**before.remote, **incoming.statuses} if incoming.statuses else before.remote,
        expires=expires,
    )
