"""Every protocol by which the layers meet; each is implemented by exactly one folder above."""

from typing import Protocol

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.trust import HostTrust


class Channel(Protocol):
    """One TCP stream that the agent's sshd accepted for us: bytes both ways, bounded in memory."""

    async def read(self) -> bytes:
        """Return what has arrived, at least one byte, or `b""` once the agent's side has ended.

        Raises ConnectionError when the channel was aborted.
        """
        ...

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, waiting while more than a bounded amount is unsent.

        Raises ConnectionError when the channel is closed.
        """
        ...

    def write_eof(self) -> None:
        """Tell the agent's side that nothing more follows; reading goes on."""
        ...

    def close(self) -> None:
        """Close both directions once what was written has been sent."""
        ...

    def abort(self) -> None:
        """Close at once, dropping what is unsent."""
        ...


class AgentChannel(Channel, Protocol):
    """A channel as its tunnel hands it over, which knows when the tunnel is about to end."""

    async def wanted(self) -> bool:
        """Wait until there is something to read; False once the agent's side has ended, or the tunnel drains."""
        ...


class HostKeySource(Protocol):
    """One way to learn which host keys an agent has."""

    async def trust_for(self, agent: Agent) -> HostTrust:
        """Return the evidence; raises HostKeyUnknownError, saying what it lacks, where there is none yet."""
        ...
