"""`tofu`: trust on first use. It proves only that the machine stays the same, so a source has to name it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError, TunnelError


@dataclass(frozen=True, slots=True)
class FirstKey:
    """Requests the key from the agent itself, through `scan(agent)`, as `type base64`; no credential is offered."""

    scan: Callable[[Agent], Awaitable[str]]

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the key that the agent presents now; from then on it is pinned to the incarnation."""
        try:
            return HostTrust(Method.TOFU, (await self.scan(agent),))
        except TunnelError as failed:
            raise HostKeyUnknownError(str(failed)) from failed
