"""What one member knows of its cluster; a part of the world."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.ownership import Lease, Member

NO_CLUSTER: Final = "this controller has no cluster: its state is in a file (controller.state)"
"""The error of an operation that needs a cluster."""


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """The state of an agent's tunnel as its holder reports it."""

    phase: str
    error: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What a check learns of a database: its version, the rules of the living members, and its clock.

    `rules` are the members' digests as in `Member`; `clock_ahead` is by how many seconds the database's clock is ahead
    of this machine's.
    """

    summary: str
    rules: Mapping[str, str]
    clock_ahead: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """The members and the leases as the database had them last.

    From `expires` on, in seconds since the epoch, this member may have been taken for dead: it keeps the tunnels that
    stand and begins nothing. `error` says why the database does not answer. `isolated` says that it has not answered
    for so long that this member serves no agent.
    """

    me: str
    members: Mapping[str, Member] = field(default_factory=dict)
    agents: Mapping[AgentId, Lease] = field(default_factory=dict)
    sources: Mapping[str, Lease] = field(default_factory=dict)
    remote: Mapping[AgentId, RemoteStatus] = field(default_factory=dict)
    expires: float = 0.0
    error: str | None = None
    isolated: bool = False

    def holds(self, agent: AgentId) -> bool:
        """Return whether this member's lease allows it to write about the agent."""
        lease = self.agents.get(agent)
        return lease is not None and lease.holder == self.me

    def serves(self, agent: AgentId) -> bool:
        """Return whether this member should have a tunnel to the agent, or be about to take one over."""
        lease = self.agents.get(agent)
        if lease is None or self.isolated:
            return False
        return lease.successor == self.me or (lease.holder == self.me and not lease.ready)

    def may_begin(self, agent: AgentId, now: float) -> bool:
        """Return whether a search or a dial may begin at `now`."""
        return now < self.expires and self.serves(agent)

    def other(self, agent: AgentId) -> str | None:
        """Return the other member that holds the agent's listener, or has held it; None if there is none."""
        lease = self.agents.get(agent)
        if lease is None:
            return None
        return lease.previous if lease.holder == self.me else lease.holder
