"""`pinned`: the host key is in the configuration file."""

from collections.abc import Mapping
from dataclasses import dataclass

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import HostKeyUnknownError


@dataclass(frozen=True, slots=True)
class PinnedKeys:
    """The host keys in the configuration, by agent."""

    keys: Mapping[AgentId, str]

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the key in the configuration."""
        if agent.id not in self.keys:
            raise HostKeyUnknownError("the configuration has no host_key for it")
        return HostTrust(Method.PINNED, (self.keys[agent.id],))
