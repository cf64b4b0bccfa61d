"""The machines of a cluster's walk: agents whose sshd gives the port to one session, and the members' database."""

from dataclasses import dataclass, field, replace

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.cluster import RemoteStatus
from tunnelmgr.core.cluster_messages import Incoming, Outgoing
from tunnelmgr.core.ownership import LEASE_SECONDS, Lease, Member, changed
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.world import Record

NAMES = ("a", "b", "c")
AGENTS = tuple(
    Agent(AgentId(f"cloud:{number}"), "1", "cloud", "ci", str(number), (f"10.0.0.{number}",)) for number in range(1, 6)
)
ALIVE_SECONDS = 10.0
"""Seconds after which an agent's sshd ends the session of a member that has died."""


@dataclass
class Port:
    """The registry's port on one agent: the session that listens, and since when its member is dead, if it is."""

    holder: str = ""
    life: int = 0
    dead_since: float | None = None

    def bind(self, member: str, life: int, now: float) -> bool:
        """Ask for the port; return whether this session has it."""
        if self.dead_since is not None and now - self.dead_since > ALIVE_SECONDS:
            self.free(self.holder)
        if not self.holder:
            self.holder, self.life = member, life
        return (self.holder, self.life) == (member, life)

    def free(self, member: str, life: int | None = None) -> None:
        """End a member's listener; of one session only, if that is named."""
        if self.holder == member and life in {None, self.life}:
            self.holder, self.life, self.dead_since = "", 0, None


@dataclass
class ModelDatabase:
    """What `store/cluster_database.py` and `store/postgres.py` do, without transactions: a turn is one step here."""

    members: dict[str, Member] = field(default_factory=dict)
    heartbeats: dict[str, float] = field(default_factory=dict)
    leases: dict[AgentId, Lease] = field(default_factory=dict)
    statuses: dict[AgentId, RemoteStatus] = field(default_factory=dict)
    records: dict[AgentId, Record] = field(default_factory=dict)
    writers: dict[tuple[AgentId, int], str] = field(default_factory=dict)

    def tick(self, me: Member, outgoing: Outgoing, now: float) -> Incoming:
        """Exchange with one member, which reads everything each time."""
        self.heartbeats[me.name] = now
        self.members[me.name] = replace(me, draining=outgoing.draining)
        members = {name: replace(one, alive=self._is_alive(name, now)) for name, one in self.members.items()}
        accepted = 0
        living = {name for name, one in members.items() if one.alive}
        for change in sorted(outgoing.changes):
            id_ = AgentId(change.id)
            accepted += self._apply(id_, changed(self.leases.get(id_), change, living))
        for id_, status in outgoing.statuses.items():
            if self.leases[id_].holder == me.name:
                self.statuses[id_] = status
        known = {id_: self.statuses.get(id_, RemoteStatus("")) for id_ in self.leases}
        return Incoming(
            members,
            dict(self.leases),
            {},
            known,
            tuple(self.records.values()),
            (),
            (),
            (),
            complete=True,
            accepted=accepted,
        )

    def rejoin(self, name: str) -> None:
        """Give everything that a member held a new term: its process has ended, and another one has its name."""
        for id_, lease in self.leases.items():
            if lease.holder == name:
                self.leases[id_] = replace(lease, term=lease.term + 1, successor=None, ready=False)

    def write(self, member: str, due: Changes) -> set[AgentId]:
        """Write what is about agents that the member holds under the terms that it names; return the others."""
        terms = due.terms or {}
        dropped = {id_ for id_, term in terms.items() if not self._holds(member, id_, term)}
        for id_, term in terms.items():
            if id_ not in dropped:
                assert self.writers.setdefault((id_, term), member) == member, "two members wrote under one term"
        self.records |= {one.agent.id: one for one in due.records if one.agent.id not in dropped}
        return dropped

    def _holds(self, member: str, agent: AgentId, term: int) -> bool:
        lease = self.leases.get(agent)
        return lease is not None and (lease.holder, lease.term) == (member, term)

    def _apply(self, agent: AgentId, after: Lease | None) -> bool:
        if after is None:
            return False
        before = self.leases.get(agent)
        assert before is None or after.term >= before.term, "a term never falls"
        self.leases[agent] = after
        return True

    def _is_alive(self, name: str, now: float) -> bool:
        return now - self.heartbeats[name] < LEASE_SECONDS
