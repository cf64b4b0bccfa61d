"""Counts the channels and bytes of a tunnel, for status and metrics."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from tunnelmgr.core.ports import AgentChannel, ByteSource, Result

WARN_EVERY: Final = 5.0
"""Seconds between two warnings about one agent's channels, since an agent may open any number of them."""


@dataclass(slots=True)
class Traffic:
    """The open channels of an agent's clients, and bytes since the tunnel came up."""

    channels: int = 0
    to_agent: int = 0
    from_agent: int = 0
    _warned: float = float("-inf")

    def may_warn(self, now: float) -> bool:
        """Return whether another warning may be logged now, and count it as logged if so."""
        due = now - self._warned >= WARN_EVERY
        if due:
            self._warned = now
        return due


class MeteredChannel:
    """A channel that adds itself and its bytes to a shared `Traffic`, and counts its own bytes."""

    __slots__ = ("_channel", "_counted", "_traffic", "from_agent", "to_agent")

    def __init__(self, channel: AgentChannel, traffic: Traffic) -> None:
        self._channel = channel
        self._traffic = traffic
        self.to_agent = 0
        self.from_agent = 0
        self._counted = True
        traffic.channels += 1

    def uncount(self) -> None:
        """Stop counting as an open channel: it has ended, or the controller's own probe uses it."""
        if self._counted:
            self._counted = False
            self._traffic.channels -= 1

    def scheduled(self, coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """See `Channel`."""
        return self._channel.scheduled(coroutine)

    async def checkpoint(self) -> None:
        """Let other agents run if this one has used up its slice."""
        await self._channel.checkpoint()

    async def wanted(self) -> bool:
        """Wait until there is something to read; see `AgentChannel`."""
        return await self._channel.wanted()

    def intercept(self, takes: Callable[[bytes], bool] | None) -> None:
        """Offer what arrives to `takes`; see `AgentChannel`."""
        self._channel.intercept(takes)

    async def read(self) -> bytes:
        """Read from the agent."""
        data = await self._channel.read()
        self.from_agent += len(data)
        self._traffic.from_agent += len(data)
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write to the agent."""
        await self._channel.write(data)
        self.to_agent += len(data)
        self._traffic.to_agent += len(data)

    async def send_from(self, source: ByteSource, limit: int, on_sent: Callable[[int], None]) -> int:
        """Send from a source to the agent, and count each piece as it is sent."""

        def counted(count: int) -> None:
            self.to_agent += count
            self._traffic.to_agent += count
            on_sent(count)

        return await self._channel.send_from(source, limit, counted)

    def write_eof(self) -> None:
        """Close the direction to the agent; the other direction stays open."""
        self._channel.write_eof()

    def close(self) -> None:
        """Close once everything has been sent."""
        self._channel.close()

    def abort(self) -> None:
        """Close at once."""
        self._channel.abort()
