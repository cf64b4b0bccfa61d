"""Runs the workers: at most one an agent, each in a task that can fail alone."""

import asyncio
from dataclasses import dataclass, field

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Failure, TunnelEnded
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.errors import Pace, TunnelError
from tunnelmgr.tunnel.worker import TunnelSettings, Worker

log = structlog.get_logger(__name__)


REMEMBERED = 1024
"""Lost connections that are remembered at most, in case their agents still hold listeners for them."""


@dataclass(slots=True)
class Supervisor:
    """Performs the tunnel actions; `settings` may be replaced, which later workers see."""

    tasks: asyncio.TaskGroup
    settings: TunnelSettings
    _stale: dict[AgentId, Ends] = field(default_factory=dict)  # the oldest first
    _lives: dict[AgentId, tuple[Worker, asyncio.Task[Failure | None]]] = field(default_factory=dict)

    def open(self, action: OpenTunnel) -> None:
        """Start a worker."""
        if action.agent in self._lives:
            raise AssertionError(f"{action.agent} has a worker already")
        worker = Worker(action, self.settings, self._stale.pop(action.agent, None))
        task = self.tasks.create_task(_guarded(worker), name=f"tunnel {action.agent}")
        self._lives[action.agent] = (worker, task)
        # A task that is cancelled before its first step runs nothing of its own, so its end is told from outside.
        task.add_done_callback(lambda done: self._over(worker, done))

    def close(self, action: CloseTunnel) -> None:
        """Ask a worker to drain, or end it now; one that is over already is no matter.

        A worker that is still dialling has nothing to finish, and a stop must not wait for agents that are away.
        """
        worker, task = self._lives.get(action.agent, (None, None))
        if worker is None or task is None or worker.life != action.life:
            return
        if action.manner is Manner.REVOKE or not worker.drain():
            task.cancel()

    def _over(self, worker: Worker, task: asyncio.Task[Failure | None]) -> None:
        del self._lives[worker.spec.agent]
        if worker.stale is not None and not task.cancelled():
            self._stale[worker.spec.agent] = worker.stale
            if len(self._stale) > REMEMBERED:
                del self._stale[next(iter(self._stale))]
        failure = None if task.cancelled() else task.result()
        self.settings.events.report(TunnelEnded(worker.spec.agent, worker.life, failure))


async def _guarded(worker: Worker) -> Failure | None:
    """Run a worker; whatever goes wrong in it ends this tunnel only."""
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
        return Failure("internal", Pace.SOON, f"{broken!r}; the log has the trace")
    return None
