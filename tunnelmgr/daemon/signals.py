"""Signals: SIGTERM and SIGINT drain, a second one ends at once, SIGHUP reads the configuration again."""

import asyncio
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field

import structlog

from tunnelmgr.controller import Controller
from tunnelmgr.core.events import DrainRequested
from tunnelmgr.daemon.membership import Membership
from tunnelmgr.daemon.reload import Reload
from tunnelmgr.errors import ConfigError

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class SignalHandler:
    """Turns signals into a drain or a reload; in a cluster, other members first take the agents over."""

    tasks: asyncio.TaskGroup
    controller: Controller
    reload: Reload
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def install(self) -> None:
        """Handle the signals on the running loop from now on."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.terminate)
        loop.add_signal_handler(signal.SIGINT, self.terminate)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)

    def stop(self) -> None:
        """Cancel reloads that are running."""
        for task in self._running:
            task.cancel()

    def terminate(self) -> None:
        """Drain at the first signal; end at once at the second."""
        membership = self.reload.membership
        if self.controller.world.draining or (membership is not None and membership.is_leaving):
            log.warning("stopping at once")
            for task in asyncio.all_tasks():
                task.cancel()
            return
        drain = self.reload.configuration.prepared.config.controller.drain
        log.info("draining; a second signal stops at once", seconds=drain)
        if membership is None:
            self.controller.report(DrainRequested())
        else:
            self._start(self._hand_over(membership, drain))

    async def _hand_over(self, membership: Membership, seconds: float) -> None:
        """Let the other members take the agents over, then drain what is left."""
        await membership.hand_over(seconds)
        self.controller.report(DrainRequested())

    def hang_up(self) -> None:
        """Read the configuration again."""
        self._start(self._reload())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self.tasks.create_task(work, name="signal")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _reload(self) -> None:
        try:
            await self.reload.run()
        except ConfigError as invalid:
            log.error("configuration invalid; the old one stays", problems=invalid.problems)  # noqa: TRY400
        except Exception:  # a bulkhead: a failing reload must not end the tunnels
            log.exception("reload failed; the old configuration stays")
