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


@dataclass(frozen=True, slots=True)
class _Silence:
    """Since when an agent has not been reached, or has been offered last, and how often it was offered."""

    since: float
    offers: int = 0


@dataclass(slots=True)
class Unreachable:
    """Follows the ends of tunnels; times are those of the controller's clock."""

    _silences: dict[AgentId, _Silence] = field(default_factory=dict)

    def note(self, event: Event, now: float) -> None:
        """Note a dial that did not reach its agent, or one that did."""
        match event:
            case TunnelEnded(agent, _, failure) if failure is not None and failure.code == UnreachableError.code:
                self._silences.setdefault(agent, _Silence(now))
            case TunnelDialled(agent):
                self._silences.pop(agent, None)

    def due(self, world: World, now: float) -> Mapping[AgentId, int]:
        """Return the agents to offer now, each with the number of offers before."""
        self._silences = {id_: silence for id_, silence in self._silences.items() if _concerns(world, id_)}
        return {
            id_: silence.offers
            for id_, silence in self._silences.items()
            if now - silence.since >= _wait(world, id_, silence.offers)
        }

    def offered(self, agents: Collection[AgentId], now: float) -> None:
        """Note that these have been offered: the next offer of each has to wait twice as long."""
        for id_ in agents:
            if (silence := self._silences.get(id_)) is not None:
                self._silences[id_] = _Silence(now, silence.offers + 1)


def _wait(world: World, agent: AgentId, offers: int) -> float:
    first = KNOWN_SECONDS if world.records[agent].possessed else NEW_SECONDS
    return first * 2.0 ** min(offers, MAX_DOUBLINGS)


def _concerns(world: World, agent: AgentId) -> bool:
    record = world.records.get(agent)
    return record is not None and record.present and world.holds(agent)
