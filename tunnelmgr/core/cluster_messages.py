"""What a member of a cluster tells the others and learns of them in one turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import RemoteStatus
from tunnelmgr.core.events import Event
from tunnelmgr.core.ownership import Lease, LeaseChange, Member
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
