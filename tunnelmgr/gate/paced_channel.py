"""A channel whose bytes count towards the rates of the agent's group."""

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final

from tunnelmgr.core.ports import ByteSource, Channel, Result
from tunnelmgr.deadline import Deadline
from tunnelmgr.gate.group_limiter import GroupLimiter

TURNS_PER_SECOND: Final = 20.0
"""Turns in which the agents of a group share its rate: the fewer, the larger the pieces."""
MIN_PIECE, MAX_PIECE = 4 * 1024, 1024 * 1024
"""Bytes that an agent is sent in one turn."""


class PacedChannel:
    """A `Channel` within the rates of a group; a direction without a rate is as fast as the channel.

    The waits for turns to send do not count towards `deadline`: others use the rate then, and neither side stalls.
    """

    __slots__ = ("_agent", "_channel", "_deadline", "_from_agents", "_owed", "_to_agents")

    def __init__(
        self, channel: Channel, agent: Hashable, limiter: GroupLimiter, deadline: Deadline, received: int = 0
    ) -> None:
        """Pace a channel; of a request's body, `received` bytes have been read already."""
        self._channel = channel
        self._agent = agent
        self._to_agents = limiter.to_agents
        self._from_agents = limiter.from_agents
        self._deadline = deadline
        self._owed = received

    async def read(self) -> bytes:
        """Read from the agent; the next `checkpoint` waits for the turn of these bytes."""
        data = await self._channel.read()
        self._owed += len(data)
        return data

    def scheduled(self, coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """See `Channel`."""
        return self._channel.scheduled(coroutine)

    async def checkpoint(self) -> None:
        """Let other agents run, and wait for the turn of what was read."""
        await self._channel.checkpoint()
        owed, self._owed = self._owed, 0
        if owed and self._from_agents is not None:
            await self._from_agents.acquire(self._agent, owed)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write to the agent, in turn."""
        if self._to_agents is not None and data:
            with self._deadline.paused():
                await self._to_agents.acquire(self._agent, len(data))
        await self._channel.write(data)

    async def send_from(self, source: ByteSource, limit: int, on_sent: Callable[[int], None]) -> int:
        """Send from a source to the agent, one piece each turn."""
        rate = self._to_agents
        if rate is None:
            return await self._channel.send_from(source, limit, on_sent)
        largest = int(min(max(MIN_PIECE, rate.rate / TURNS_PER_SECOND), MAX_PIECE))
        sent = 0
        while sent < limit:
            piece = min(largest, limit - sent)
            with self._deadline.paused():
                await rate.acquire(self._agent, piece)
            count = await self._channel.send_from(source, piece, on_sent)
            sent += count
            if count < piece:
                break
        return sent

    def write_eof(self) -> None:
        """See `Channel`."""
        self._channel.write_eof()

    def close(self) -> None:
        """See `Channel`."""
        self._channel.close()

    def abort(self) -> None:
        """See `Channel`."""
        self._channel.abort()
