"""Runs the workers: at most one per agent, each in its own task, whose failure ends only its tunnel."""

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import TunnelEnded
from tunnelmgr.core.failure import INTERNAL, Failure
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.errors import Pace, TunnelError
from tunnelmgr.tunnel.settings import TunnelSettings
from tunnelmgr.tunnel.worker import Worker

log = structlog.get_logger(__name__)


MAX_STALE_CONNECTIONS = 1024
"""Maximum number of lost connections to remember, whose agents may still hold listeners for them."""


@dataclass(slots=True)
class Supervisor:
    """Performs the tunnel actions; replaced `settings` apply to later workers."""

    tasks: asyncio.TaskGroup
    settings: TunnelSettings
    _stale: dict[AgentId, Ends] = field(default_factory=dict)  # the oldest first
    _deadline: float = math.inf  # by the loop's clock
    _lives: dict[AgentId, tuple[Worker, asyncio.Task[Failure | None]]] = field(default_factory=dict)

    def open(self, action: OpenTunnel) -> None:
        """Start a worker."""
        if action.agent in self._lives:
            raise AssertionError(f"{action.agent} has a worker already")
        worker = Worker(action, self.settings, self._stale.pop(action.agent, None))
        task = self.tasks.create_task(_guarded(worker), name=f"tunnel {action.agent}")
        self._lives[action.agent] = (worker, task)
        # A task that is cancelled before its first step never runs, so its end is reported from here.
        task.add_done_callback(partial(self._report_end, worker))

    def close(self, action: CloseTunnel) -> None:
        """Drain a worker, or end it now; does nothing if it is over already.

        A worker that is still dialling has nothing to finish and ends now: a stop must not wait for unreachable agents.
        """
        worker, task = self._lives.get(action.agent, (None, None))
        if worker is None or task is None or worker.life != action.life:
            return
        left = self._deadline - asyncio.get_running_loop().time()
        if action.manner is Manner.REVOKE or not worker.drain(max(0.0, left)):
            task.cancel()

    async def finish_transfers(self, seconds: float) -> None:
        """Wait until the transfers that are in progress now have ended, at most `seconds`; drains end by then, too.

        Transfers that begin meanwhile do not count. A transfer has ended when the agent's sshd has passed it on, which
        it says by closing the channel; so its channel is ended, although its client may have wanted to keep it.
        """
        self._deadline = asyncio.get_running_loop().time() + seconds
        channels = [channel for worker, _ in self._lives.values() for channel in worker.finish_transfers()]
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._deadline):
                for channel in channels:
                    await channel.closed()

    def _report_end(self, worker: Worker, task: asyncio.Task[Failure | None]) -> None:
        del self._lives[worker.spec.agent]
        if worker.stale is not None and not task.cancelled():
            self._stale[worker.spec.agent] = worker.stale
            if len(self._stale) > MAX_STALE_CONNECTIONS:
                del self._stale[next(iter(self._stale))]
        failure = None if task.cancelled() else task.result()
        self.settings.events.report(TunnelEnded(worker.spec.agent, worker.life, failure))


async def _guarded(worker: Worker) -> Failure | None:
    """Run a worker; any error in it ends this tunnel only."""
    try:
        await worker.run()
    except TunnelError as ended:
        clear_exception_frames(ended)
        return Failure(ended.code, ended.retry, str(ended))
    except asyncio.CancelledError as cancelled:
        clear_exception_frames(cancelled)
        raise
    except Exception as broken:
        log.exception("worker failed", agent=worker.spec.agent)
        clear_exception_frames(broken)
        return Failure(INTERNAL, Pace.SOON, f"internal error: {broken!r}. The log has the traceback")
    return None
