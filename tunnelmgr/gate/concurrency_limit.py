"""Bounds what one agent may have under way at a time, so that it holds up only its own requests."""

import asyncio
from weakref import WeakValueDictionary

from tunnelmgr.core.agent import AgentId


class ConcurrencyLimit:
    """A semaphore for each agent; one that nobody holds a reference to any more takes no memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._of: WeakValueDictionary[AgentId, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, agent: AgentId) -> asyncio.Semaphore:
        """Return the agent's semaphore, the same for all its sessions."""
        found = self._of.get(agent)
        if found is None:
            found = self._of[agent] = asyncio.Semaphore(self._limit)
        return found
