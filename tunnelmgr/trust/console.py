"""`console`: the host keys that cloud-init printed on the instance's console, which only EC2 itself can return."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.threads import in_thread
from tunnelmgr.trust.console_block import host_keys

MAX_CONCURRENT_CALLS = 4
"""GetConsoleOutput has the lowest quota of all EC2 calls."""


@dataclass(slots=True)
class ConsoleKeys:
    """Reads an instance's console through `read`, which blocks, and raises HostKeyUnknownError if it cannot."""

    read: Callable[[Agent], str]
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_CALLS))

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the keys of the only complete block on the console."""
        async with self._slots:
            text = await in_thread(self.read, agent)
        try:
            return HostTrust(Method.CONSOLE, host_keys(text))
        except ValueError as lacking:
            raise HostKeyUnknownError(str(lacking)) from lacking
