"""Keeping an eye on the registries behind the gate."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from tunnelmgr.core.health import RegistryHealth
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.gate.registry_check import is_loopback_only, registry_error

log = structlog.get_logger(__name__)

UNKNOWN = RegistryHealth(reachable=False, loopback_only=None)


@dataclass(slots=True)
class RegistryWatch:
    """Looks at every registry that a forward leads to whenever `bell` is rung; `facts` tell of the worst one."""

    forwards: Callable[[], tuple[Forward, ...]]
    facts: RegistryHealth = UNKNOWN
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    clock: Callable[[], float] = time.time

    async def run(self) -> None:
        """Look at each ring, until cancelled; each look has its own deadline."""
        while True:
            await self.bell.wait()
            self.bell.clear()
            await self.look()

    async def look(self) -> None:
        """Bring `facts` up to date, and log what has changed."""
        targets = dict.fromkeys(forward.target for forward in self.forwards() if forward.protocol == "registry")
        found = [await _facts(target) for target in targets]
        worst = next((each for each in found if not each.reachable or each.loopback_only is False), None)
        now = worst or (found[0] if found else UNKNOWN)
        if now != self.facts:
            log.info("registry", reachable=now.reachable, loopback_only=now.loopback_only, error=now.error)
        self.facts = replace(now, checked_at=self.clock()) if found else now


async def _facts(target: Endpoint) -> RegistryHealth:
    error = await registry_error(target)
    return RegistryHealth(error is None, await asyncio.to_thread(is_loopback_only, target), error)
