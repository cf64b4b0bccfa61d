"""One agent's slots for requests in one registry."""

import asyncio
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.concurrency_limit import Slots

MAX_PENDING_REQUESTS: Final = 3
"""Requests without a body that one agent may have in the registry at once, until their responses start.

The default of docker and containerd (`max-concurrent-downloads`). Each further one adds about 3 ms to another agent's
p99 while one floods a registry on two cores (`benchmarks/flood.py`).
"""


@dataclass(frozen=True, slots=True)
class RegistrySlot:
    """Where an agent's requests go, and its slots, for one of which a request waits at most `timeout` seconds.

    As an asynchronous context it holds one; entering raises RegistryUnavailableError if none becomes free.
    """

    target: Endpoint
    slots: Slots
    timeout: float

    async def acquire(self) -> None:
        """Take a slot; raises RegistryUnavailableError."""
        if self.slots.take():
            return
        try:
            async with asyncio.timeout(self.timeout):
                await self.slots.acquire()
        except TimeoutError as late:
            raise RegistryUnavailableError(
                f"the registry at {self.target} has not answered {MAX_PENDING_REQUESTS} earlier requests of this agent"
            ) from late

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.slots.release()
