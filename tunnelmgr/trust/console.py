"""`console`: the host keys that cloud-init printed on the instance's console, which only EC2 itself can return."""

import asyncio
from dataclasses import dataclass, field

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError
from tunnelmgr.threads import in_thread
from tunnelmgr.trust.console_block import host_keys
from tunnelmgr.trust.lookups import ConsoleReader

MAX_CONCURRENT_CALLS = 4
"""GetConsoleOutput has the lowest quota of all EC2 calls."""


@dataclass(slots=True)
class ConsoleKeys:
    """Reads consoles through the source, a few at a time."""

    source: ConsoleReader
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT_CALLS))

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the keys of the only complete block on the console."""
        async with self._slots:
            text = await in_thread(self.source.console_output, agent)
        try:
            return HostTrust(Method.CONSOLE, host_keys(text))
        except ValueError as incomplete:
            raise HostKeyUnknownError(str(incomplete)) from incomplete
