"""`tofu`: trust on first use. It proves only that the machine stays the same, so a source has to name it."""

from dataclasses import dataclass

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError, TunnelError
from tunnelmgr.trust.lookups import HostKeyScanner


@dataclass(frozen=True, slots=True)
class FirstKey:
    """Scans the agent for its host key."""

    scanner: HostKeyScanner

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the key that the agent presents now; from then on it is pinned to the incarnation."""
        try:
            return HostTrust(Method.TOFU, (await self.scanner.host_key(agent),))
        except TunnelError as failed:
            raise HostKeyUnknownError(str(failed)) from failed
