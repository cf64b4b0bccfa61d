"""Signals: SIGTERM and SIGINT stop, a second one ends at once, SIGHUP reads the configuration again."""

import asyncio
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from tunnelmgr.controller import Controller
from tunnelmgr.core.events import DrainRequested, StopRequested
from tunnelmgr.daemon.reload import Reload
from tunnelmgr.errors import ConfigError
from tunnelmgr.tunnel.supervisor import Supervisor

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class SignalHandler:
    """Turns signals into a stop or a reload; in a cluster, other members first take the agents over."""

    tasks: asyncio.TaskGroup
    controller: Controller
    reload: Reload
    supervisor: Supervisor
    _stopping: bool = False
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def install(self) -> None:
        """Handle the signals on the running loop from now on."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.terminate)
        loop.add_signal_handler(signal.SIGINT, self.terminate)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)

    def stop(self) -> None:
        """Cancel what is running."""
        for task in self._running:
            task.cancel()

    def terminate(self) -> None:
        """Stop at the first signal; end at once at the second."""
        if self._stopping:
            log.warning("stopping at once")
            for task in asyncio.all_tasks():
                task.cancel()
            return
        drain = self.reload.configuration.prepared.config.controller.drain
        log.info("draining", seconds=drain)
        self._stopping = True
        self._start(self._drain(drain), "drain")

    def hang_up(self) -> None:
        """Read the configuration again."""
        self._start(self._reload(), "reload")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self.tasks.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _drain(self, seconds: float) -> None:
        """Close the tunnels once the transfers in progress have ended, so that one of them costs no other agent.

        Before that, the other members of a cluster take over what they can.
        """
        self.controller.report(StopRequested())
        if self.reload.membership is not None:
            await self.reload.membership.hand_over(seconds)
        await self.supervisor.finish_transfers(seconds)
        self.controller.report(DrainRequested())

    async def _reload(self) -> None:
        try:
            await self.reload.run()
        except ConfigError as invalid:
            log.error("configuration invalid", problems=invalid.problems)  # noqa: TRY400
        except Exception:  # a bulkhead: a failing reload must not end the tunnels
            log.exception("reload failed")
