"""Who waits for something scarce: agents take turns, and the waits of one agent are served in the order of arrival."""

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait for `amount` of something; `turn` is set when it has it."""

    amount: float
    turn: asyncio.Future[None]


class Turns:
    """The waits of many agents. An agent that waits for much delays the others by one turn each time."""

    def __init__(self) -> None:
        self._by_agent: dict[Hashable, deque[Wait]] = {}  # the agent whose turn is next comes first
        self._count = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._count

    def add(self, agent: Hashable, amount: float) -> Wait:
        """Add a wait behind the others of the agent."""
        wait = Wait(amount, asyncio.get_running_loop().create_future())
        self._by_agent.setdefault(agent, deque()).append(wait)
        self._count += 1
        return wait

    def remove(self, agent: Hashable, wait: Wait) -> None:
        """Remove a wait that was given up, if it has not had its turn."""
        waits = self._by_agent.get(agent)
        if waits is None or wait not in waits:
            return
        waits.remove(wait)
        self._count -= 1
        if not waits:
            del self._by_agent[agent]

    def next(self) -> Wait | None:
        """Take the wait whose turn it is, None if nobody waits."""
        agent = next(iter(self._by_agent), None)
        if agent is None:
            return None
        waits = self._by_agent.pop(agent)
        wait = waits.popleft()
        self._count -= 1
        if waits:
            self._by_agent[agent] = waits  # behind the other agents
        return wait
