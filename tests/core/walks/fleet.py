"""The simulated machines: which exist, at which addresses, with which keys, and what their sources answer."""

import base64
import random
from collections.abc import Iterable

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method

AGENTS = tuple(map(AgentId, ("cloud:0", "cloud:1", "cloud:2", "file:0")))
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
GROUPS = ("ci", "strict")
METHODS = {"cloud": (Method.CONSOLE, Method.AUTHORITY, Method.TOFU), "file": (Method.PINNED,)}
SOURCES = tuple(METHODS)


def key(number: int) -> str:
    """Return a made-up public key."""
    return f"ssh-ed25519 {base64.b64encode(number.to_bytes(6, 'big')).decode()}"


def sorted_by_id(agents: Iterable[Agent]) -> list[Agent]:
    """Return agents in an order that is the same in every run."""
    return sorted(agents, key=lambda agent: agent.id)


class Fleet:
    """The machines of two sources."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.agents: dict[AgentId, Agent] = {}
        self.ended: set[AgentId] = set()
        self.shared: dict[AgentId, int] = {}
        self.forged: dict[AgentId, AgentId] = {}

    def launch(self) -> None:
        """Start, rebuild or move a machine.

        Some have another's address, some another's key, some no address; some only claim to have another's key.
        """
        id_ = self.dice.choice(AGENTS)
        self.ended.discard(id_)
        self.shared.pop(id_, None)
        self.forged.pop(id_, None)
        if self.dice.random() < 0.3:
            self.shared[id_] = self.dice.randrange(2)
        if self.dice.random() < 0.3:
            self.forged[id_] = self.dice.choice(AGENTS)
        addresses = (self.dice.choice(ADDRESSES),) if self.dice.random() < 0.9 else ()
        incarnation = self.dice.choice("1112")
        self.agents[id_] = Agent(id_, incarnation, id_.split(":")[0], self.dice.choice(GROUPS), id_, addresses)

    def terminate(self) -> None:
        """End a machine; its source says so at the next answer."""
        id_ = self.dice.choice(AGENTS)
        if self.agents.pop(id_, None):
            self.ended.add(id_)

    def vanish(self) -> None:
        """End a machine without a report."""
        self.agents.pop(self.dice.choice(AGENTS), None)

    def snapshot(self, source: str) -> Snapshot:
        """Return a source's complete answer."""
        listed = frozenset(agent for agent in self.agents.values() if agent.source == source)
        gone = frozenset(id_ for id_ in self.ended if id_.startswith(source))
        return Snapshot(listed, gone, absence_is_proof=source == "file")

    def key_of(self, agent: Agent) -> str:
        """Return the key that an agent has: its own, or one that others have too."""
        own = 100 + AGENTS.index(agent.id) * 10 + int(agent.incarnation)
        return key(self.shared.get(agent.id, own))

    def named_for(self, agent: Agent) -> tuple[str, ...]:
        """Return the keys that evidence names: the agent's own, and with some another's, or that alone."""
        own, victim = self.key_of(agent), self.agents.get(self.forged.get(agent.id, agent.id), agent)
        other = self.key_of(victim)
        return (other,) if self.dice.random() < 0.2 else tuple(dict.fromkeys((own, other)))
