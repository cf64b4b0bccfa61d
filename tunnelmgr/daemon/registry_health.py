"""The health of the registries behind the gate, checked at intervals."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from tunnelmgr.core.health import RegistryHealth
from tunnelmgr.core.tunnel import Endpoint, Forward, pull_through_caches, push_registries, registries
from tunnelmgr.gate.registry_check import is_loopback_only, registry_error

log = structlog.get_logger(__name__)

UNKNOWN = RegistryHealth(reachable=False, loopback_only=None)


class HasForwards(Protocol):
    """Names the registries to check, by their forwards; `ActiveConfiguration` does."""

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The forwards that every tunnel has."""
        ...


@dataclass(slots=True)
class RegistryWatch:
    """Checks every registry that a forward leads to or sends pushes to; `health` is that of the worst one."""

    configuration: HasForwards
    health: RegistryHealth = UNKNOWN
    clock: Callable[[], float] = time.time
    _due: asyncio.Event = field(default_factory=asyncio.Event)

    async def check_soon(self) -> None:
        """Make `run` check now; a job of the scheduler."""
        self._due.set()

    async def run(self) -> None:
        """Check each time that a check is due, until cancelled; each check has its own deadline."""
        while True:
            await self._due.wait()
            self._due.clear()
            await self.check()

    async def check(self) -> None:
        """Update `health`, and log what has changed."""
        forwards = self.configuration.forwards
        every = dict.fromkeys((*registries(forwards), *push_registries(forwards), *pull_through_caches(forwards)))
        found = [await _check_one(registry) for registry in every]
        worst = next((each for each in found if not each.reachable or each.loopback_only is False), None)
        now = worst or (found[0] if found else UNKNOWN)
        if now != self.health:
            level = log.info if now.reachable and now.loopback_only is not False else log.error
            level(
                "registry health changed",
                reachable=now.reachable,
                loopback_only=now.loopback_only,
                error=now.error,
            )
        self.health = replace(now, checked_at=self.clock()) if found else now


async def _check_one(target: Endpoint) -> RegistryHealth:
    error = await registry_error(target)
    return RegistryHealth(error is None, await asyncio.to_thread(is_loopback_only, target), error)
