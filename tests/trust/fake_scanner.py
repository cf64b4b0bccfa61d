"""A scanner that returns what the test says that each agent presents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunnelmgr.core.agent import Agent


@dataclass
class FakeScanner:
    """Returns an agent's key or certificate, or raises the exception that stands in its place."""

    keys: Mapping[Agent, str | Exception] = field(default_factory=dict)
    certificates: Mapping[Agent, bytes | Exception] = field(default_factory=dict)
    wanted: list[tuple[str, ...]] = field(default_factory=list)
    """The keys whose types were requested, one entry for each scan for a host key."""

    async def host_key(self, agent: Agent, wanted: Sequence[str] = ()) -> str:
        """Return the agent's key."""
        self.wanted.append(tuple(wanted))
        key = self.keys[agent]
        if isinstance(key, Exception):
            raise key
        return key

    async def certificate(self, agent: Agent) -> bytes:
        """Return the agent's certificate."""
        certificate = self.certificates[agent]
        if isinstance(certificate, Exception):
            raise certificate
        return certificate
