"""`console`: the key that cloud-init printed on the instance's console, which only EC2 itself can serve."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.threads import in_thread
from tunnelmgr.trust.console_block import host_keys

AT_ONCE = 4
"""Calls in flight: GetConsoleOutput has the lowest quota of all EC2 calls."""


@dataclass(slots=True)
class ConsoleKeys:
    """Reads an instance's console through `read`, which blocks and raises HostKeyUnknownError where it cannot."""

    read: Callable[[Agent], str]
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the keys of the console's one whole block."""
        async with self._slots:
            text = await in_thread(self.read, agent)
        try:
            return HostTrust(Method.CONSOLE, host_keys(text))
        except ValueError as lacking:
            raise HostKeyUnknownError(str(lacking)) from lacking
