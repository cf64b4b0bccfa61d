"""Everything that can happen to the world; each event is a fact, reported by the part that saw it."""

from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.core.world import Record


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration was read, at the start or again."""

    rules: Rules


@dataclass(frozen=True, slots=True)
class AgentsDiscovered:
    """A source answered, completely or in part."""

    source: str
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class DiscoveryFailed:
    """A source did not answer; its last snapshot stays in force."""

    source: str
    error: str


@dataclass(frozen=True, slots=True)
class AgentEnded:
    """A source's event feed reports that an agent has ended permanently; `why` goes into its history."""

    source: str
    agent: AgentId
    why: str


@dataclass(frozen=True, slots=True)
class FeedReported:
    """A source's event feed answers (`error` is None) or fails; polling continues in both cases."""

    source: str
    error: str | None


@dataclass(frozen=True, slots=True)
class FeedClosed:
    """A source's event feed is no longer read."""

    source: str


@dataclass(frozen=True, slots=True)
class SeedAdded:
    """A host key was generated for a machine that will be launched."""

    seed: Seed


@dataclass(frozen=True, slots=True)
class KeyExamined:
    """An agent in dispute was asked to show one of the disputed keys; `key` is the key that it showed, "" if none."""

    agent: AgentId
    incarnation: str
    key: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class EvidenceContradicted:
    """The machine at the agent's address shows something that contradicts the evidence."""

    agent: AgentId
    incarnation: str
    message: str


@dataclass(frozen=True, slots=True)
class AgentQuarantined:
    """Another member has quarantined an agent, and lost its lease before it could store that."""

    agent: AgentId
    incarnation: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class EvidenceFound:
    """A trust method found evidence for one incarnation of an agent."""

    agent: AgentId
    incarnation: str
    trust: HostTrust


@dataclass(frozen=True, slots=True)
class EvidenceAbsent:
    """No trust method has evidence yet; `message` says which were tried and what they lack."""

    agent: AgentId
    incarnation: str
    message: str


@dataclass(frozen=True, slots=True)
class TunnelDialled:
    """A worker has verified the agent's host key and logged in at `address` with the key of fingerprint `login_key`.

    `host_key` is the key that the agent has shown in the handshake, as `type base64`. `took` are the seconds since the
    dial was admitted.
    """

    agent: AgentId
    life: int
    address: str
    login_key: str = ""
    host_key: str = ""
    took: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class TunnelBound:
    """The agent's sshd listens on `held` and refused `refused`; another process on the agent holds `conflicts`."""

    agent: AgentId
    life: int
    held: tuple[Endpoint, ...]
    refused: tuple[Endpoint, ...] = ()
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoginKeyTested:
    """`excess` is what the login key could do on the agent beyond what a tunnel needs; usually nothing."""

    agent: AgentId
    life: int
    excess: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TunnelProbed:
    """A probe came back through the agent's own listener after `took` seconds; after the first, the tunnel is up."""

    agent: AgentId
    life: int
    took: float


@dataclass(frozen=True, slots=True)
class TunnelEnded:
    """A worker has ended; `failure` is None if it was asked to end."""

    agent: AgentId
    life: int
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class RetryRequested:
    """An operator, the user `uid` of this machine, requests the next try now."""

    agent: AgentId
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    """An operator, the user `uid` of this machine, ends a quarantine; the evidence is forgotten."""

    agent: AgentId
    reason: str
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The controller is to stop: everything continues until the transfers in progress have ended; then it drains."""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The controller stops: close every listener, let transfers finish, then close everything."""


@dataclass(frozen=True, slots=True)
class RetentionExpired:
    """Agents that left before `before`, and seeds that expired unused by `wall`, may be forgotten.

    `wall` is the time by the wall clock, which defines when a seed expires; None means the time of the event.
    """

    before: float
    wall: float | None = None


@dataclass(frozen=True, slots=True)
class ClusterChanged:
    """The database has told the members and the leases, or does not answer; `moved` are the agents of new leases."""

    cluster: Cluster
    moved: frozenset[AgentId] = frozenset()


@dataclass(frozen=True, slots=True)
class StateShared:
    """What other members have written: records of agents that this one does not hold, and all seeds."""

    records: tuple[Record, ...]
    seeds: tuple[Seed, ...] = ()


Event = (
    Reconfigured
    | AgentsDiscovered
    | DiscoveryFailed
    | AgentEnded
    | FeedReported
    | FeedClosed
    | SeedAdded
    | EvidenceFound
    | EvidenceContradicted
    | EvidenceAbsent
    | KeyExamined
    | TunnelDialled
    | TunnelBound
    | TunnelProbed
    | LoginKeyTested
    | TunnelEnded
    | RetryRequested
    | ReleaseRequested
    | StopRequested
    | DrainRequested
    | RetentionExpired
    | ClusterChanged
    | StateShared
    | AgentQuarantined
)
