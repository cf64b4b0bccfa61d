"""What all workers share, and the protocol of the gate's side."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from tunnelmgr.core.ports import AgentChannel, EventSink
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.errors import ProbeTimeoutError
from tunnelmgr.ssh.login import Login
from tunnelmgr.tunnel.admission import Admission
from tunnelmgr.tunnel.proof import Prover


class ChannelHandler(Protocol):
    """Serves the channels that agents open through their listeners; `daemon/channel_server.py` implements it."""

    async def serve_channel(
        self, channel: AgentChannel, spec: TunnelSpec, forward: Forward, endpoint: Endpoint
    ) -> None:
        """Carry one channel that came in through `endpoint` to the forward's target; must not raise."""
        ...


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """What all workers share. Times in seconds."""

    login: Login
    probe_interval: float
    max_channels: int
    drain: float
    admission: Admission
    prover: Prover
    channel_handler: ChannelHandler
    events: EventSink

    @property
    def probe_timeout(self) -> float:
        """How long a probe may take: a silent network cut is found and repaired within two intervals."""
        return min(10.0, max(1.0, 0.8 * self.probe_interval))

    def probe_deadline(self) -> "ProbeDeadline":
        """Raise ProbeTimeoutError, in a `with` block, if the agent does not answer within `probe_timeout`."""
        return ProbeDeadline(self.probe_timeout)


class ProbeDeadline:
    """Cancels the task that enters it after some seconds, and makes that a ProbeTimeoutError.

    It does what `asyncio.timeout` does in a context manager of ours, for a quarter of the CPU time: a fleet enters one
    for every probe.
    """

    __slots__ = ("_cancelling", "_late", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._late = False

    def __enter__(self) -> None:
        """Start the timer; only in a task."""
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a deadline outside of a task")
        self._task, self._cancelling = task, task.cancelling()
        self._timer = task.get_loop().call_later(self._seconds, self._expire)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Stop the timer; raises ProbeTimeoutError if the task was cancelled by it and by nobody else."""
        self._timer.cancel()
        if self._late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise ProbeTimeoutError(self._seconds) from error

    def _expire(self) -> None:
        self._late = True
        self._task.cancel()
