"""Serving the channels that agents open: through the gate, or as a raw relay for forwards of protocol `tcp`."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.health import LimitHealth
from tunnelmgr.core.ports import AgentChannel
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.traffic import Traffic


@dataclass(slots=True)
class ChannelServer:
    """The tunnels' `ChannelHandler`: passes each channel to the gate with its caller, and counts traffic by agent."""

    configuration: ActiveConfiguration
    gate: Gate
    controller: str
    """The controller's name, which the gate reports to callers."""
    traffic: dict[AgentId, Traffic] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def limits(self) -> list[LimitHealth]:
        """Return what the limits of groups have done."""
        return self.gate.context.limiters.health()

    async def serve_channel(
        self, channel: AgentChannel, spec: TunnelSpec, forward: Forward, endpoint: Endpoint
    ) -> None:
        """Serve a channel that came in at `endpoint` of a tunnel, until it ends."""
        traffic = self.traffic.setdefault(spec.agent, Traffic())
        if forward.protocol == "tcp":
            await relay(channel, forward.target, traffic)
            return
        caller = Caller(
            agent=spec.agent,
            incarnation=spec.incarnation,
            name=spec.name,
            group=self.configuration.group_of(spec.agent),
            controller=self.controller,
            listener=str(endpoint),
            forward=forward.name,
            channel=next(self._numbers),
        )
        await self.gate.serve(channel, caller, forward, traffic)
