"""Limits how many operations of one kind an agent may run at once, so that it delays only its own requests."""

import asyncio
from collections import deque
from weakref import WeakValueDictionary

from tunnelmgr.core.agent import AgentId


class Slots:
    """A number of slots; who waits for one gets it in the order of arrival.

    A semaphore from which a slot can also be taken without waiting.
    """

    __slots__ = ("__weakref__", "_free", "_waiting")

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a slot if one is free; returns whether it was."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def acquire(self) -> None:
        """Wait for a slot, and take it; the caller sets the deadline."""
        if self.take():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was handed over at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give a slot to the next who waits, or back."""
        while self._waiting:
            if not (turn := self._waiting.popleft()).done():
                turn.set_result(None)
                return
        self._free += 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()


class ConcurrencyLimit:
    """The slots of each agent, which exist as long as anything refers to them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._slots: WeakValueDictionary[AgentId, Slots] = WeakValueDictionary()

    def slots_of(self, agent: AgentId) -> Slots:
        """Return the agent's slots, which all its channels share."""
        slots = self._slots.get(agent)
        if slots is None:
            slots = self._slots[agent] = Slots(self._limit)
        return slots
