"""Limits how many operations of one kind an agent may run at once, so that it delays only its own requests."""

import asyncio
from weakref import WeakValueDictionary

from tunnelmgr.core.agent import AgentId


class ConcurrencyLimit:
    """A semaphore for each agent, which exists as long as anything refers to it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._semaphores: WeakValueDictionary[AgentId, asyncio.Semaphore] = WeakValueDictionary()

    def semaphore_of(self, agent: AgentId) -> asyncio.Semaphore:
        """Return the agent's semaphore, which all its channels share."""
        semaphore = self._semaphores.get(agent)
        if semaphore is None:
            semaphore = self._semaphores[agent] = asyncio.Semaphore(self._limit)
        return semaphore
