"""One agent channel's connection to the registry: opened when first needed, kept between requests.

- A connection that the registry has closed, or on which it sent bytes without a request, is replaced before the next
  request.
- A request is sent again, once, only if it is GET or HEAD, was sent on a kept connection, and no byte of a response
  arrived: the registry may have closed the idle connection at that moment (RFC 9112, section 9.5; RFC 9110, section
  9.2.2).
- The channels of one agent share a few slots for requests whose response has not started, so that an agent with many
  channels does not make the requests of others wait in the registry.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from tunnelmgr.core.ports import Channel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.bodies import Piece, body_reader
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.head_parser import ParseBuffer, ResponseHead, parse_response_head
from tunnelmgr.gate.registry_slot import RegistrySlot
from tunnelmgr.gate.target_socket import TargetSocket

_REPEATABLE: Final = frozenset({"GET", "HEAD"})


class RegistryConnection:
    """A channel's connection to the registry; every failure of the registry is a RegistryUnavailableError."""

    def __init__(self, target: Endpoint, slots: Slots, *, head_timeout: float, idle_timeout: float) -> None:
        self._target = target
        self.slot = RegistrySlot(target, slots, head_timeout)
        """Held while the agent has a request in the registry whose response has not started."""
        self._head_timeout = head_timeout
        self._idle_timeout = idle_timeout
        self._socket: TargetSocket | None = None
        self._inbox = ParseBuffer(RegistryUnavailableError)
        self._response_begun = False
        self._close_after_response = False

    async def open(self) -> bool:
        """Ensure that the connection is usable; returns whether it is a kept one."""
        self._response_begun = False
        self._close_after_response = False
        if self._socket is not None and self._socket.idle and not self._inbox:
            return True
        self.abort()
        self._socket = await TargetSocket.open(self._target)
        return False

    def abort(self) -> None:
        """Close the connection at once, and drop what has arrived on it."""
        if self._socket is not None:
            self._socket.abort()
            self._socket = None
        self._inbox.take_all()

    def close_after_response(self) -> None:
        """Close the connection once the current response has been read, since its request was not sent whole."""
        self._close_after_response = True

    async def round_trip(self, method: str, request: bytes) -> ResponseHead:
        """Send a request without a body once the agent has a free slot, and return the head of its response."""
        async with self.slot:
            return await self._round_trip(method, request)

    async def _round_trip(self, method: str, request: bytes) -> ResponseHead:
        kept = await self.open()
        try:
            return await self._round_trip_once(method, request)
        except RegistryUnavailableError:
            if not kept or self._response_begun or method not in _REPEATABLE:
                raise
        self.abort()
        await self.open()
        return await self._round_trip_once(method, request)

    async def send(self, data: Piece) -> None:
        """Send, waiting while too much is unsent."""
        socket = self._current_socket()
        try:
            # Only a wait needs a deadline: the kernel takes most data at once.
            if not socket.send(data):
                async with asyncio.timeout(self._idle_timeout):
                    await socket.drained()
        except ConnectionError as lost:
            raise RegistryUnavailableError(f"the registry at {self._target} closed the connection") from lost
        except TimeoutError as stalled:
            raise RegistryUnavailableError(
                f"the registry at {self._target} has taken no data for {self._idle_timeout:g} s"
            ) from stalled

    async def receive_head(self, method: str, *, after: "asyncio.Task[None] | None" = None) -> ResponseHead:
        """Return the head of the final response; if `after` is given, the deadline runs from its end."""
        try:
            async with asyncio.timeout(None if after else self._head_timeout) as timeout:
                if after is None:
                    return await self._receive_head(method)
                delayed = _DelayedTimeout(timeout, self._head_timeout)
                after.add_done_callback(delayed.start)
                try:
                    return await self._receive_head(method)
                finally:
                    delayed.stop()
        except TimeoutError as late:
            raise RegistryUnavailableError(
                f"the registry at {self._target} did not answer within {self._head_timeout:g} s"
            ) from late

    def take_received(self, count: int) -> bytes:
        """Remove and return what has arrived of a body of `count` bytes."""
        data = self._inbox.take_all()
        self._inbox.feed(data[count:])
        return data[:count]

    async def send_to(self, agent: Channel, count: int, on_sent: Callable[[int], None]) -> None:
        """Send the next `count` bytes of a body straight from the socket to the agent.

        Calls `on_sent` with the size of each piece; the caller sets the deadlines.
        """
        socket = self._current_socket()
        try:
            sent = await agent.send_from(socket, count, on_sent)
        except ConnectionError as lost:
            if not socket.failed:
                raise  # the agent is gone, and the registry has not failed
            raise RegistryUnavailableError(f"the registry at {self._target} closed the connection") from lost
        if sent < count:
            raise RegistryUnavailableError(
                f"the registry at {self._target} closed the connection in the middle of a response"
            )

    def finish(self, response: ResponseHead) -> None:
        """Close the connection if this response, now read, was the last on it."""
        if self._close_after_response or not response.keep_alive:
            self.abort()

    async def stream_body(self, response: ResponseHead) -> AsyncGenerator[Sequence[Piece], None]:
        """Yield the response's body as it arrives, without its transfer coding; the caller sets the deadlines."""
        reader = body_reader(response.body, RegistryUnavailableError)
        data = b"" if reader.done else self._inbox.take_all()
        while not reader.done:
            if pieces := reader.feed(data):
                yield pieces
            if reader.done:
                self._inbox.feed(reader.rest)
                break
            if reader.more:
                data = b""
                continue
            data = await self._receive()
            if not data:
                if reader.ends_with_stream:
                    break
                raise RegistryUnavailableError(
                    f"the registry at {self._target} closed the connection in the middle of a response"
                )
        self.finish(response)

    async def _round_trip_once(self, method: str, request: bytes) -> ResponseHead:
        await self.send(request)
        return await self.receive_head(method)

    async def _receive_head(self, method: str) -> ResponseHead:
        while True:
            while (raw := self._inbox.take_head()) is None:
                data = await self._receive()
                if not data:
                    raise RegistryUnavailableError(
                        f"the registry at {self._target} closed the connection without a response"
                    )
                self._response_begun = True
                self._inbox.feed(data)
            response = parse_response_head(method, raw)
            if response.status >= 200:  # noqa: PLR2004 (interim responses are not forwarded: RFC 9110, section 15.2)
                return response

    async def _receive(self) -> bytes:
        try:
            return await self._current_socket().read()
        except ConnectionError as lost:
            raise RegistryUnavailableError(f"the registry at {self._target} closed the connection") from lost

    def _current_socket(self) -> TargetSocket:
        assert self._socket is not None  # noqa: S101 (`open` comes before every exchange)
        return self._socket


class _DelayedTimeout:
    """Starts a timeout once a task is done, unless the wait is over by then."""

    __slots__ = ("_seconds", "_timeout", "_waiting")

    def __init__(self, timeout: asyncio.Timeout, seconds: float) -> None:
        self._timeout = timeout
        self._seconds = seconds
        self._waiting = True

    def start(self, _: "asyncio.Task[None]") -> None:
        # The callback may already be scheduled when the response arrives; a timeout that has ended cannot be moved.
        if self._waiting:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)

    def stop(self) -> None:
        self._waiting = False
