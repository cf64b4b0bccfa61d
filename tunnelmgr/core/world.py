"""Everything that the controller knows, as one immutable value: readers need no lock, and a change is a new world."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust
from tunnelmgr.core.tunnel import Phase, Resting, TunnelStatus

HISTORY_LENGTH = 60
"""Entries that are kept of an agent's history; the oldest are dropped first."""
RETRIED = frozenset({"evidence", "dialled", "bound", "failed"})
"""The steps of a life that ends before its tunnel is up."""
LIFE = len(RETRIED)
"""The most entries that such a life has."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One step in an agent's history: `step` is a word such as `seen` or `bound`, `detail` a sentence part.

    `uid` is the user of this machine who requested it, None if no user did. `count` says how often in a row a failing
    agent has taken this step in the same way: first at `since`, last at `at`.
    """

    at: float
    step: str
    detail: str
    uid: int | None = None
    count: int = 1
    since: float | None = None

    @property
    def is_news(self) -> bool:
        """Return whether the entry is worth a log line: of repetitions, the 2nd, 4th, 8th and so on are."""
        return self.count & (self.count - 1) == 0

    def again(self, at: float) -> "HistoryEntry":
        """Return the entry with one more repetition."""
        since = self.at if self.since is None else self.since
        return replace(self, at=at, count=self.count + 1, since=since)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why and since when an agent is refused until an operator releases it.

    `disputed` names the keys for which a handshake may still decide between the agent and others that claim them;
    `examined` says that the agent was asked to show one of them. See `evolve.claims`.
    """

    since: float
    code: str
    message: str
    disputed: tuple[str, ...] = ()
    examined: bool = False


@dataclass(frozen=True, slots=True)
class SourceView:
    """The health of one source: `error` names what its last answer lacked; `feed_ok` is None without an event feed.

    `missing` counts the agents that its last complete listing lacked and that are kept nevertheless: those found by
    their ids, and those about which nothing is known yet.
    """

    name: str
    ok: bool = False
    last_success: float | None = None
    error: str | None = None
    missing: int = 0
    feed_ok: bool | None = None
    feed_error: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is remembered of one agent; it outlives the agent's presence for a while.

    `missed` counts the complete listings in a row that lacked it, up to two, the first of them at `missing_since`;
    `ended` says that its source has reported its end.
    `trust` is the evidence in force, `proved` the last that was accepted for this incarnation, in force or not.
    `possessed` are the keys that this incarnation has shown in a handshake since it last appeared.
    `excess` is what our login key could do there beyond what a tunnel needs, None if this process has not tried.
    """

    agent: Agent
    first_seen: float
    changed: float
    present: bool = True
    missed: int = 0
    missing_since: float = 0.0
    ended: bool = False
    trust: HostTrust | None = None
    proved: HostTrust | None = None
    possessed: tuple[str, ...] = ()
    quarantine: Quarantine | None = None
    history: tuple[HistoryEntry, ...] = ()
    excess: tuple[str, ...] | None = None

    @property
    def held_back(self) -> bool:
        """Return whether only a release helps: in quarantine, or without evidence as strong as the proof before."""
        return self.quarantine is not None or (self.trust is None and self.proved is not None)

    def with_step(self, at: float, step: str, detail: str, uid: int | None = None) -> "Record":
        """Return the record with one more step in its history.

        A life that fails in the same way as the one before only increases the counts of its entries.
        """
        known = _repeated(self.history, step, detail)
        if known is not None:
            history = (*(entry for entry in self.history if entry is not known), known.again(at))
        else:
            history = (*self.history[1 - HISTORY_LENGTH :], HistoryEntry(at, step, detail, uid))
        return replace(self, history=history, changed=at)


def _repeated(history: tuple[HistoryEntry, ...], step: str, detail: str) -> HistoryEntry | None:
    """Return the entry that a step repeats: the same one in a life that has failed, with no other step since."""
    failed = False
    for entry in reversed(history[-LIFE:]):
        if entry.step not in RETRIED:
            return None
        failed = failed or entry.step == "failed"
        if failed and (entry.step, entry.detail) == (step, detail):
            return entry
    return None


class Stage(IntEnum):
    """How far the process is on its way from start to stop; it never goes back."""

    RUNNING = 0
    STOPPING = 1  # a stop was requested: everything continues until the transfers in progress then have ended
    DRAINING = 2  # no tunnel is desired; the process ends with the last one


@dataclass(frozen=True, slots=True)
class World:
    """The state of everything; `key_holders` says to which present agent each claimed key is assigned.

    `cluster` is None for a controller that shares its state with no other.
    """

    rules: Rules = field(default_factory=Rules)
    sources: Mapping[str, SourceView] = field(default_factory=dict)
    records: Mapping[AgentId, Record] = field(default_factory=dict)
    tunnels: Mapping[AgentId, TunnelStatus] = field(default_factory=dict)
    key_holders: Mapping[str, AgentId] = field(default_factory=dict)
    seeds: Mapping[str, Seed] = field(default_factory=dict)
    stage: Stage = Stage.RUNNING
    cluster: Cluster | None = None

    @property
    def draining(self) -> bool:
        """Whether tunnels are no longer desired."""
        return self.stage is Stage.DRAINING

    def holds(self, agent: AgentId) -> bool:
        """Return whether this controller may write about an agent."""
        return self.cluster is None or self.cluster.holds(agent)

    def is_held_elsewhere(self, agent: AgentId) -> bool:
        """Return whether another member of the cluster holds an agent, and reports about it."""
        return self.cluster is not None and agent in self.cluster.agents and not self.cluster.holds(agent)

    def status(self, agent: AgentId) -> TunnelStatus:
        """Return the tunnel's status; an agent for which nothing was started is `down` since it was first seen."""
        known = self.tunnels.get(agent)
        if known is not None:
            return known
        record = self.records[agent]
        return resting_status(record, record.first_seen)

    def with_record(self, record: Record) -> "World":
        """Return the world with one record replaced."""
        return replace(self, records={**self.records, record.agent.id: record})

    def with_tunnel(self, agent: AgentId, status: TunnelStatus) -> "World":
        """Return the world with one tunnel's status replaced."""
        return replace(self, tunnels={**self.tunnels, agent: status})


def resting_phase(record: Record) -> Phase:
    """Return the phase of an agent on which nothing is under way."""
    if record.quarantine is not None:
        return Phase.QUARANTINED
    if record.present and record.trust is None:
        return Phase.AWAITING_IDENTITY
    return Phase.DOWN


def resting_status(record: Record, since: float, life: int = 0) -> Resting:
    """Return the status of an agent on which nothing is under way."""
    mark = record.quarantine
    return Resting(
        phase=resting_phase(record),
        since=since,
        life=life,
        error=mark.code if mark else None,
        message=mark.message if mark else "",
    )


def status_of(world: World, record: Record) -> TunnelStatus:
    """Return the status of an agent, also of one that left."""
    return world.tunnels.get(record.agent.id) or resting_status(record, record.changed)
