"""An agent and its id."""

from dataclasses import dataclass
from typing import NewType

AgentId = NewType("AgentId", str)
"""Names one incarnation of one machine, never an address: `ec2:i-0abc…`, `static:builder-1`."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A build machine as its source describes it.

    `incarnation` changes when the machine is rebuilt under the same id; pins belong to it.
    `addresses` are in order of preference; none of them identifies the agent. `rebuilding` says that the source is
    rebuilding the machine, so that a new incarnation follows under the same id.
    """

    id: AgentId
    incarnation: str
    source: str
    group: str
    name: str
    addresses: tuple[str, ...]
    port: int = 22
    labels: tuple[tuple[str, str], ...] = ()
    rebuilding: bool = False

    @property
    def address(self) -> str:
        """The preferred address with its port, for messages."""
        host = self.addresses[0] if self.addresses else "-"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
