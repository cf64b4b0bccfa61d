"""A seed: a host key that was generated for a machine before its launch."""

from dataclasses import dataclass

from tunnelmgr.core.agent import Agent, AgentId


@dataclass(frozen=True, slots=True)
class Seed:
    """The public half of a host key, and who holds the private one.

    A seed serves one incarnation: the first agent whose label names it becomes its holder. A seed without a holder at
    `expires` (seconds since the epoch, by the wall clock) is forgotten.
    """

    id: str
    key: str
    expires: float
    holder: AgentId | None = None
    incarnation: str = ""

    def serves(self, agent: Agent) -> bool:
        """Return whether the seed may prove `agent`."""
        return self.holder is None or (self.holder == agent.id and self.incarnation == agent.incarnation)
