"""Bytes by group, as counters that only grow: the agents' own counters go when an agent is forgotten."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.health import TrafficCounters
from tunnelmgr.core.world import World

TO_AGENT, FROM_AGENT = "to_agent", "from_agent"
"""The directions, as values of the label `direction`."""


class TrafficTotals:
    """The bytes that the agents of each group have carried since the start, in each direction.

    What an agent has carried since the last `add` counts for the group that it is in now.
    """

    def __init__(self) -> None:
        self._totals: Counter[tuple[str, str]] = Counter()
        self._added: dict[AgentId, tuple[int, int]] = {}  # what is in the totals of each agent

    def add(self, world: World, traffic: Mapping[AgentId, TrafficCounters]) -> None:
        """Add what the agents of this world have carried since the last time."""
        for id_, counters in traffic.items():
            if (record := world.records.get(id_)) is not None:
                to_agent, from_agent = self._added.get(id_, (0, 0))
                self._totals[record.agent.group, TO_AGENT] += counters.to_agent - to_agent
                self._totals[record.agent.group, FROM_AGENT] += counters.from_agent - from_agent
                self._added[id_] = counters.to_agent, counters.from_agent

    def forget(self, agents: Iterable[AgentId]) -> None:
        """Forget agents whose counters are removed; their bytes stay in the totals."""
        for id_ in agents:
            self._added.pop(id_, None)

    def items(self) -> Iterable[tuple[tuple[str, str], int]]:
        """Return the total of each group and direction."""
        return self._totals.items()
