"""`tofu`: the first key seen, for sources that name it. It proves only that the machine stays the same."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError, TunnelError


@dataclass(frozen=True, slots=True)
class FirstKey:
    """Asks the agent itself through `scan(agent)`, which returns a key as `type base64`; no credential is offered."""

    scan: Callable[[Agent], Awaitable[str]]

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the key that the agent shows now; it is pinned to the incarnation from then on."""
        try:
            return HostTrust(Method.TOFU, (await self.scan(agent),))
        except TunnelError as failed:
            raise HostKeyUnknownError(str(failed)) from failed
