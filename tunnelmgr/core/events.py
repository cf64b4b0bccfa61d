"""Everything that can happen to the world; each event is a fact, reported by the part that saw it."""

from dataclasses import dataclass

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust
from tunnelmgr.core.tunnel import Endpoint


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration was read (again)."""

    rules: Rules


@dataclass(frozen=True, slots=True)
class AgentsDiscovered:
    """A source answered, wholly or in part."""

    source: str
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class DiscoveryFailed:
    """A source gave no answer at all; its last snapshot stays in force."""

    source: str
    error: str


@dataclass(frozen=True, slots=True)
class AgentEnded:
    """A source's event feed says that an agent is over for good; `why` is told in its history."""

    source: str
    agent: AgentId
    why: str


@dataclass(frozen=True, slots=True)
class FeedReported:
    """A source's event feed answers (`error` is None) or fails; polling goes on either way."""

    source: str
    error: str | None


@dataclass(frozen=True, slots=True)
class FeedClosed:
    """A source's event feed is no longer listened to."""

    source: str


@dataclass(frozen=True, slots=True)
class SeedAdded:
    """A host key was made for a machine that is to be launched."""

    seed: Seed


@dataclass(frozen=True, slots=True)
class KeyExamined:
    """An agent in dispute was asked to show one of the disputed keys: `key` is what it showed, "" where nothing."""

    agent: AgentId
    incarnation: str
    key: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class EvidenceContradicted:
    """A machine was found that the agent cannot be: it shows what contradicts the evidence."""

    agent: AgentId
    incarnation: str
    message: str


@dataclass(frozen=True, slots=True)
class EvidenceFound:
    """A trust source answered for one incarnation of an agent."""

    agent: AgentId
    incarnation: str
    trust: HostTrust


@dataclass(frozen=True, slots=True)
class EvidenceAbsent:
    """No trust source has evidence yet; `message` says which were asked and what they lack."""

    agent: AgentId
    incarnation: str
    message: str


@dataclass(frozen=True, slots=True)
class TunnelDialled:
    """A worker has proved the agent's key and logged in at `address` with the key of fingerprint `login_key`.

    `host_key` is the key that the agent has shown in the handshake, as `type base64`.
    """

    agent: AgentId
    life: int
    address: str
    login_key: str = ""
    host_key: str = ""


@dataclass(frozen=True, slots=True)
class TunnelBound:
    """The agent's sshd listens on `held`; it would not on `refused`, and another process there holds `conflicts`."""

    agent: AgentId
    life: int
    held: tuple[Endpoint, ...]
    refused: tuple[Endpoint, ...] = ()
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TunnelProbed:
    """A probe came back through the agent's own listener after `took` seconds; the first one means `up`."""

    agent: AgentId
    life: int
    took: float


@dataclass(frozen=True, slots=True)
class TunnelEnded:
    """A worker is over; `failure` is None where it was asked to end."""

    agent: AgentId
    life: int
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class RetryRequested:
    """A person, the user `uid` of this machine, wants the next try now."""

    agent: AgentId
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    """A person, the user `uid` of this machine, ends a quarantine, and with it what was believed of the key."""

    agent: AgentId
    reason: str
    uid: int | None = None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The controller is to stop: let transfers end, then close everything."""


@dataclass(frozen=True, slots=True)
class RetentionExpired:
    """Agents that left before `before` may be forgotten, and seeds that nobody has taken and that expired by `wall`.

    `wall` is the time of the wall clock, by which people know when a seed expires; None where it is the event's own.
    """

    before: float
    wall: float | None = None


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
    | TunnelEnded
    | RetryRequested
    | ReleaseRequested
    | DrainRequested
    | RetentionExpired
)
