"""Everything that can happen to the world; each event is a fact, told by whoever saw it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.errors import Pace


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A source's answer.

    `gone` holds the agents that the source itself calls ended, `outside` those that are there and were taken out of the
    source, and `unlisted` those of `agents` that the listing lacked and that were found by their ids. `failures` says
    what could not be asked; while it is not empty, absence means nothing. `absence_is_proof` is for sources whose list
    is the truth (a file).
    """

    agents: frozenset[Agent]
    gone: frozenset[AgentId] = frozenset()
    failures: tuple[str, ...] = ()
    absence_is_proof: bool = False
    outside: frozenset[AgentId] = frozenset()
    unlisted: frozenset[AgentId] = frozenset()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something ended: an error's code, pace and message."""

    code: str
    retry: Pace
    message: str


@dataclass(frozen=True, slots=True)
class Grouping:
    """How the configuration puts a source's agents into groups.

    `own` has the groups of single agents, all others are in `usual`. `chosen` holds the further groups that the source
    itself may choose: an agent that is in one of them stays there until the source tells otherwise.
    """

    usual: str
    own: Mapping[AgentId, str] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()

    def group_of(self, agent: Agent) -> str:
        """Return an agent's group."""
        own = self.own.get(agent.id)
        if own is not None:
            return own
        return agent.group if agent.group in self.chosen else self.usual


@dataclass(frozen=True, slots=True)
class Rules:
    """The part of the configuration that decisions rest on.

    `groups` tells into which groups each source's agents belong. `trust` gives each source's methods in order;
    `minimum` each group's weakest acceptable one. `authorities` stands for the certificate authorities that each source
    believes, each with what it has revoked: where one of them is no longer there as it was, the certificates of that
    source's agents are looked at again.
    """

    forwards: tuple[Forward, ...] = ()
    trust: Mapping[str, tuple[Method, ...]] = field(default_factory=dict)
    minimum: Mapping[str, Method] = field(default_factory=dict)
    authorities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: Mapping[str, Grouping] = field(default_factory=dict)

    def group_of(self, agent: Agent) -> str:
        """Return the group that the configuration puts an agent into; its last one if its source is not configured."""
        grouping = self.groups.get(agent.source)
        return agent.group if grouping is None else grouping.group_of(agent)

    def accepts(self, agent: Agent, method: Method) -> bool:
        """Tell whether evidence had by `method` may be believed for `agent`."""
        minimum = self.minimum.get(agent.group, Method.TOFU)
        return method in self.trust.get(agent.source, ()) and method.reaches(minimum)

    def believes_less(self, source: str, before: "Rules") -> bool:
        """Tell whether a certificate of a source's agent that was good under the rules `before` may be no more."""
        return not before.authorities.get(source, frozenset()) <= self.authorities.get(source, frozenset())


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
class FeedHeard:
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
    """The agent's sshd listens on `held`; it would not on `refused`, and another process there holds `squatted`."""

    agent: AgentId
    life: int
    held: tuple[Endpoint, ...]
    refused: tuple[Endpoint, ...] = ()
    squatted: tuple[str, ...] = ()


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
class MemoryExpired:
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
    | FeedHeard
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
    | MemoryExpired
)
