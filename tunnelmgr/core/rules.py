"""The part of the configuration that decisions about agents depend on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Forward


@dataclass(frozen=True, slots=True)
class Grouping:
    """How the configuration puts a source's agents into groups.

    `own` has the groups of single agents; all others are in `usual`. `chosen` holds the further groups that the source
    itself may choose: an agent in one of them stays there until the source says otherwise.
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
    """The part of the configuration that decisions depend on.

    `groups` says to which groups each source's agents belong, `trust` gives each source's methods in order, `minimum`
    each group's weakest acceptable one. `authorities` has the certificate authorities that each source accepts, each
    with what it has revoked: if one is removed or changed, the certificates of that source's agents are checked again.
    `restricted` are the groups whose agents must limit the login key to what a tunnel needs.
    """

    forwards: tuple[Forward, ...] = ()
    trust: Mapping[str, tuple[Method, ...]] = field(default_factory=dict)
    minimum: Mapping[str, Method] = field(default_factory=dict)
    authorities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: Mapping[str, Grouping] = field(default_factory=dict)
    restricted: frozenset[str] = frozenset()

    def group_of(self, agent: Agent) -> str:
        """Return the group that the configuration puts an agent into; its last one if its source is not configured."""
        grouping = self.groups.get(agent.source)
        return agent.group if grouping is None else grouping.group_of(agent)

    def accepts(self, agent: Agent, method: Method) -> bool:
        """Return whether evidence by `method` is acceptable for `agent`."""
        minimum = self.minimum.get(agent.group, Method.TOFU)
        return method in self.trust.get(agent.source, ()) and method.reaches(minimum)

    def trusts_less(self, source: str, before: "Rules") -> bool:
        """Return whether a certificate of a source's agent that was valid under `before` may now be invalid."""
        return not before.authorities.get(source, frozenset()) <= self.authorities.get(source, frozenset())
