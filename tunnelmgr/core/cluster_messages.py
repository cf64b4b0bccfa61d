"""What a member of a cluster tells the others and learns of them in one turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster, RemoteStatus
from tunnelmgr.core.events import Event
from tunnelmgr.core.ownership import NOBODY, Lease, LeaseChange, Member
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.world import Record


@dataclass(frozen=True, slots=True)
class Discovered:
    """What a source said; `whole` means that what it said before no longer matters."""

    source: str
    event: Event
    whole: bool


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What a member tells the others."""

    draining: bool = False
    rules: str = ""
    changes: Sequence[LeaseChange] = ()
    statuses: Mapping[AgentId, RemoteStatus] = field(default_factory=dict)
    discovered: Sequence[Discovered] = ()
    requests: Sequence[tuple[AgentId, Event]] = ()
    drains: Mapping[str, bool] = field(default_factory=dict)
    """Members that an operator wants to drain, or no longer to."""
    done: Sequence[int] = ()
    """Requests of others that this member has acted on."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a member learns: all members, and the leases, records and events that are new since its last `tick`.

    `complete` says that these are all leases, as after a new connection.
    """

    members: Mapping[str, Member]
    agents: Mapping[AgentId, Lease]
    sources: Mapping[str, Lease]
    statuses: Mapping[AgentId, RemoteStatus]
    records: tuple[Record, ...]
    seeds: tuple[Seed, ...]
    discovered: tuple[Event, ...]
    requests: tuple[tuple[int, Event], ...]
    complete: bool
    accepted: int
    """How many of the requested lease changes were accepted."""


def merged(before: Cluster, incoming: Incoming, expires: float) -> Cluster:
    """Return the cluster with what is new in it, and without the leases that nobody holds any longer.

    `expires` is as in `Cluster`.
    """
    if incoming.complete:
        before = Cluster(before.me)
    agents, sources, remote = before.agents, before.sources, before.remote
    if incoming.agents:
        agents = {id_: lease for id_, lease in {**agents, **incoming.agents}.items() if lease.holder != NOBODY}
    if incoming.sources:
        sources = {name: lease for name, lease in {**sources, **incoming.sources}.items() if lease.holder != NOBODY}
    if incoming.statuses:
        remote = {id_: status for id_, status in {**remote, **incoming.statuses}.items() if id_ in agents}
    return Cluster(before.me, incoming.members, agents, sources, remote, expires)
