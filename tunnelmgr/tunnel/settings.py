"""What all workers share, and the protocol of the gate's side."""

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from tunnelmgr.core.ports import AgentChannel, EventSink
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.deadline import Deadline
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


class ProbeDeadline(Deadline):
    """A deadline whose end is a ProbeTimeoutError; for one `with` block."""

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def __enter__(self) -> None:
        """Start the timer; only in a task."""
        self.within(self._seconds)
        super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the timer; raises ProbeTimeoutError if the task was cancelled by it and by nobody else."""
        self.close()
        try:
            super().__exit__(kind, error, trace)
        except TimeoutError:
            raise ProbeTimeoutError(self._seconds) from error
