"""What a member requests of the others and tells them, by its world; pure."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final, cast

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster, RemoteStatus
from tunnelmgr.core.events import AgentQuarantined
from tunnelmgr.core.ownership import Holdings, Lease, LeaseChange, Member, Progress
from tunnelmgr.core.tunnel import Connecting, Phase, TunnelStatus, Up
from tunnelmgr.core.world import Record, World, status_of

ZONE_LABEL: Final = "tunnelmgr:zone"
CONNECTED: Final = frozenset({Phase.CONNECTING.value, Phase.UP.value, Phase.DRAINING.value})
"""The phases of an agent whose holder has a connection, which a handover must not interrupt."""
UNSETTLED: Final = frozenset({Phase.CONNECTING.value, Phase.DOWN.value})
"""The phases of an agent whose holder is still connecting to it."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a member knows beside its world: itself as it will be after the next turn; the rest is as in `Holdings`."""

    me: Member
    forgotten: AbstractSet[AgentId] = frozenset()
    unreachable: Mapping[AgentId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Zones(Mapping[str, str]):
    """The zone of each agent that is present, looked up when it is asked for: most turns need none."""

    records: Mapping[AgentId, Record]

    def __getitem__(self, id_: str) -> str:
        record = self.records.get(AgentId(id_))
        if record is None or not record.present:
            raise KeyError(id_)
        return zone_of(record)

    def __iter__(self) -> Iterator[str]:
        return (id_ for id_, record in self.records.items() if record.present)

    def __len__(self) -> int:
        return sum(record.present for record in self.records.values())


def agent_holdings(world: World, cluster: Cluster, situation: Situation) -> Holdings:
    """Return what this member decides about the agents by."""
    return Holdings(
        "agent",
        cluster.me,
        {**cluster.members, situation.me.name: situation.me},
        cast("Mapping[str, Lease]", cluster.agents),  # an AgentId is a str, but mappings are invariant in their keys
        Zones(world.records),
        {id_: progress(world, cluster, id_) for id_, lease in cluster.agents.items() if lease.successor == cluster.me},
        situation.forgotten,
        cast("Mapping[str, int]", situation.unreachable),
        frozenset(id_ for id_, remote in cluster.remote.items() if remote.phase in UNSETTLED),
    )


def forgotten(world: World, cluster: Cluster) -> AbstractSet[AgentId]:
    """Return the agents of which this member knows nothing but the lease."""
    return cluster.agents.keys() - world.records.keys()


def source_holdings(cluster: Cluster, sources: Iterable[str], me: Member) -> Holdings:
    """Return what this member decides about the sources by; their leases pass on at once."""
    members = {**cluster.members, me.name: me}
    wanted = dict.fromkeys(sources, me.zone)
    return Holdings("source", cluster.me, members, cluster.sources, wanted, {}, cluster.sources.keys() - wanted.keys())


def requested(world: World, sources: Iterable[str], situation: Situation) -> list[LeaseChange]:
    """Return the lease changes to request now; nothing before the members are known."""
    cluster = world.cluster
    if cluster is None or cluster.me not in cluster.members:
        return []
    agents = agent_holdings(world, cluster, situation)
    return [*agents.changes(), *source_holdings(cluster, sources, situation.me).changes()]


def zone_of(record: Record) -> str:
    """Return an agent's zone, "" if its source does not say."""
    return next((value for name, value in record.agent.labels if name == ZONE_LABEL), "")


def progress(world: World, cluster: Cluster, agent: AgentId) -> Progress:
    """Return how far this member is with an agent that it is to take over."""
    record = world.records.get(agent)
    if record is None or not record.present or not _must_log_in(cluster, agent):
        return Progress.LISTENING  # there is no listener to wait for
    match status_of(world, record):
        case Up():
            return Progress.LISTENING
        case Connecting(bindings=bindings, login_key=login_key):
            if bindings.held:
                return Progress.LISTENING
            return Progress.NONE if login_key is None else Progress.LOGGED_IN
        case status:
            return Progress.FAILED if status.failures else Progress.NONE


def _must_log_in(cluster: Cluster, agent: AgentId) -> bool:
    """Return whether an offered agent is taken over only once this member has logged in to it.

    So it is if the holder has a connection, or offers the agent because it cannot reach it.
    """
    remote, holder = cluster.remote.get(agent), cluster.members.get(cluster.agents[agent].holder)
    if remote is None or holder is None:
        return False
    return remote.phase in CONNECTED or (remote.phase == Phase.DOWN.value and not holder.draining)


def new_statuses(world: World, told: World) -> dict[AgentId, RemoteStatus]:
    """Return the state of each agent that this member holds, unless it has told the same under the same term.

    `told` is the world as the others know it; what is the same object in both is not compared.
    """
    cluster = world.cluster
    found: dict[AgentId, RemoteStatus] = {}
    for id_, lease in cluster.agents.items() if cluster is not None else ():
        record = world.records.get(id_)
        if cluster is None or lease.holder != cluster.me or record is None:
            continue
        known = told.records.get(id_) if _was_held(told, id_, lease) else None
        if known is record and told.tunnels.get(id_) is world.tunnels.get(id_):
            continue
        status = _remote(status_of(world, record))
        if known is None or status != _remote(status_of(told, known)):
            found[id_] = status
    return found


def _was_held(told: World, agent: AgentId, lease: Lease) -> bool:
    before = told.cluster.agents.get(agent) if told.cluster is not None else None
    return before is not None and (before.holder, before.term) == (lease.holder, lease.term)


def _remote(status: TunnelStatus) -> RemoteStatus:
    return RemoteStatus(status.phase.value, status.error, status.message)


def unstored_quarantines(world: World, stored: World, lost: Iterable[AgentId]) -> list[AgentQuarantined]:
    """Return what the new holders must be told of agents that this member has lost: quarantines it could not store."""
    found = []
    for id_ in lost:
        record, written = world.records.get(id_), stored.records.get(id_)
        mark = record.quarantine if record is not None else None
        if record is not None and mark is not None and (written is None or written.quarantine != mark):
            found.append(AgentQuarantined(id_, record.agent.incarnation, mark.code, mark.message))
    return found
