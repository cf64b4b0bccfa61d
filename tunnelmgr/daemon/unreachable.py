"""The agents that this member cannot reach, and when each is offered to another member, whose network may be intact."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Event, TunnelDialled, TunnelEnded
from tunnelmgr.core.world import World
from tunnelmgr.errors import UnreachableError

KNOWN_SECONDS: Final = 5.0
"""Seconds for which an agent that this incarnation was reached before has to be unreachable before it is offered."""
NEW_SECONDS: Final = 60.0
"""The same for one that was never reached: it is more likely still booting."""
MAX_DOUBLINGS: Final = 7
"""The wait doubles with each offer, this often at most."""


@dataclass(slots=True)
class Unreachable:
    """Follows the ends of tunnels; times are those of the controller's clock."""

    _since: dict[AgentId, float] = field(default_factory=dict)
    _offers: dict[AgentId, int] = field(default_factory=dict)

    def note(self, event: Event, now: float) -> None:
        """Note a dial that did not reach its agent, or one that did."""
        match event:
            case TunnelEnded(agent, _, failure) if failure is not None and failure.code == UnreachableError.code:
                self._since.setdefault(agent, now)
            case TunnelDialled(agent):
                self._forget(agent)

    def due(self, world: World, now: float) -> Mapping[AgentId, int]:
        """Return the agents to offer now, each with the number of offers before."""
        for id_ in [id_ for id_ in self._since if not self._concerns(world, id_)]:
            self._forget(id_)
        return {
            id_: self._offers.get(id_, 0) for id_, since in self._since.items() if now - since >= self._wait(world, id_)
        }

    def offered(self, agents: Collection[AgentId], now: float) -> None:
        """Note that these have been offered: the next offer of each has to wait twice as long."""
        for id_ in agents:
            if id_ in self._since:
                self._since[id_] = now
                self._offers[id_] = self._offers.get(id_, 0) + 1

    def _wait(self, world: World, agent: AgentId) -> float:
        first = KNOWN_SECONDS if world.records[agent].possessed else NEW_SECONDS
        return first * 2.0 ** min(self._offers.get(agent, 0), MAX_DOUBLINGS)

    def _forget(self, agent: AgentId) -> None:
        self._since.pop(agent, None)
        self._offers.pop(agent, None)

    @staticmethod
    def _concerns(world: World, agent: AgentId) -> bool:
        record = world.records.get(agent)
        return record is not None and record.present and world.holds(agent)
