"""What all workers share, and the protocol of the gate's side."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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

    @asynccontextmanager
    async def probe_deadline(self) -> AsyncIterator[None]:
        """Raise ProbeTimeoutError if the agent does not answer within `probe_timeout`."""
        try:
            async with asyncio.timeout(self.probe_timeout):
                yield
        except TimeoutError as late:
            raise ProbeTimeoutError(self.probe_timeout) from late
