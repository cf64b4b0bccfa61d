"""What a member requests of the others and tells them, by its world; pure."""

from collections.abc import Iterable, Mapping
from typing import Final, cast

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster, RemoteStatus
from tunnelmgr.core.ownership import Holdings, Lease, LeaseChange, Member, Progress
from tunnelmgr.core.tunnel import Connecting, Phase, TunnelStatus, Up
from tunnelmgr.core.world import Record, World, status_of

ZONE_LABEL: Final = "tunnelmgr:zone"
CONNECTED: Final = frozenset({Phase.CONNECTING.value, Phase.UP.value, Phase.DRAINING.value})
"""The phases of an agent whose holder has a connection, which a handover must not interrupt."""


def agent_holdings(world: World, cluster: Cluster, me: Member) -> Holdings:
    """Return what this member decides about the agents by."""
    return Holdings(
        "agent",
        cluster.me,
        {**cluster.members, me.name: me},
        cast("Mapping[str, Lease]", cluster.agents),  # an AgentId is a str, but mappings are invariant in their keys
        {id_: zone_of(record) for id_, record in world.records.items() if record.present},
        {id_: progress(world, cluster, id_) for id_, lease in cluster.agents.items() if lease.successor == cluster.me},
    )


def source_holdings(cluster: Cluster, sources: Iterable[str], me: Member) -> Holdings:
    """Return what this member decides about the sources by; their leases pass on at once."""
    members = {**cluster.members, me.name: me}
    return Holdings("source", cluster.me, members, cluster.sources, dict.fromkeys(sources, me.zone), {})


def requested(world: World, sources: Iterable[str], me: Member) -> list[LeaseChange]:
    """Return the lease changes to request now; nothing before the members are known."""
    cluster = world.cluster
    if cluster is None or cluster.me not in cluster.members:
        return []
    return [*agent_holdings(world, cluster, me).changes(), *source_holdings(cluster, sources, me).changes()]


def zone_of(record: Record) -> str:
    """Return an agent's zone, "" if its source does not say."""
    return next((value for name, value in record.agent.labels if name == ZONE_LABEL), "")


def progress(world: World, cluster: Cluster, agent: AgentId) -> Progress:
    """Return how far this member is with an agent that it is to take over."""
    remote, record = cluster.remote.get(agent), world.records.get(agent)
    if record is None or not record.present or remote is None or remote.phase not in CONNECTED:
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


def statuses(world: World) -> Mapping[AgentId, RemoteStatus]:
    """Return the state of each agent that this member holds, for the others."""
    cluster = world.cluster
    if cluster is None:
        return {}
    return {id_: _remote(status_of(world, record)) for id_, record in world.records.items() if cluster.holds(id_)}


def _remote(status: TunnelStatus) -> RemoteStatus:
    return RemoteStatus(status.phase.value, status.error, status.message)
