"""One agent channel's connection to the registry: opened when first needed, kept between requests.

- A connection that the registry ended, or on which it spoke unasked, is replaced before the next request.
- A request is sent again, once, only if it is GET or HEAD, went out on a kept connection, and no byte of an answer
  came: the registry may have closed the idle connection just then (RFC 9112, section 9.5; RFC 9110, section 9.2.2).
- The channels of one agent share a few slots for requests that the registry has not begun to answer, so that an agent
  with many channels does not make the others' requests wait in the registry.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from tunnelmgr.core.ports import Channel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.bodies import Piece, body_reader
from tunnelmgr.gate.head_parser import ReceiveBuffer, ResponseHead, parse_response_head
from tunnelmgr.gate.target_socket import TargetSocket

MAX_PENDING_REQUESTS: Final = 4
"""Requests without a body that one agent may have in the registry at once, until their answers begin."""
_REPEATABLE: Final = frozenset({"GET", "HEAD"})


class RegistryConnection:
    """The registry as one channel sees it; every failure of it is a RegistryUnavailableError."""

    def __init__(self, target: Endpoint, slots: asyncio.Semaphore, *, head_timeout: float, idle_timeout: float) -> None:
        self._target = target
        self._slots = slots
        self._head_timeout = head_timeout
        self._idle_timeout = idle_timeout
        self._upstream: TargetSocket | None = None
        self._inbox = ReceiveBuffer(RegistryUnavailableError)
        self._heard = False
        self._last = False

    async def open(self) -> bool:
        """Have a usable connection; returns whether it is a kept one."""
        self._heard = False
        self._last = False
        if self._upstream is not None and self._upstream.idle and not self._inbox:
            return True
        self.abort()
        self._upstream = await TargetSocket.open(self._target)
        return False

    def abort(self) -> None:
        """Drop the connection at once, and with it whatever the registry is doing for us."""
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        self._inbox.take_all()

    def end_with_answer(self) -> None:
        """Drop the connection once the current answer has been read: the request on it was never sent whole."""
        self._last = True

    async def ask(self, method: str, wire: bytes) -> ResponseHead:
        """Send a request without a body and return its answer's head, once the agent has a slot for it."""
        try:
            async with asyncio.timeout(self._head_timeout):
                await self._slots.acquire()
        except TimeoutError as late:
            raise RegistryUnavailableError(
                f"the registry at {self._target} has not answered {MAX_PENDING_REQUESTS} earlier requests of this agent"
            ) from late
        try:
            return await self._ask(method, wire)
        finally:
            self._slots.release()

    async def _ask(self, method: str, wire: bytes) -> ResponseHead:
        kept = await self.open()
        try:
            return await self._ask_once(method, wire)
        except RegistryUnavailableError:
            if not kept or self._heard or method not in _REPEATABLE:
                raise
        self.abort()
        await self.open()
        return await self._ask_once(method, wire)

    async def send(self, data: Piece) -> None:
        """Send, waiting while too much is unsent."""
        upstream = self._connection()
        try:
            # A deadline only where there is a wait: most of what is sent is taken at once.
            if not upstream.send(data):
                async with asyncio.timeout(self._idle_timeout):
                    await upstream.drained()
        except ConnectionError as lost:
            raise RegistryUnavailableError(f"the registry at {self._target} hung up") from lost
        except TimeoutError as stalled:
            raise RegistryUnavailableError(f"the registry at {self._target} takes no more data") from stalled

    async def receive_head(self, method: str, *, after: "asyncio.Task[None] | None" = None) -> ResponseHead:
        """Return the final answer's head; the time for it runs once `after` is done."""
        wait = None if after else self._head_timeout
        try:
            async with asyncio.timeout(wait) as limit:
                if after is None:
                    return await self._receive_head(method)
                clock = _LateStart(limit, self._head_timeout)
                after.add_done_callback(clock.start)
                try:
                    return await self._receive_head(method)
                finally:
                    clock.stop()
        except TimeoutError as late:
            raise RegistryUnavailableError(f"the registry at {self._target} did not answer in time") from late

    def arrived(self, count: int) -> bytes:
        """Return what has arrived of a body of `count` bytes."""
        data = self._inbox.take_all()
        self._inbox.feed(data[count:])
        return data[:count]

    async def pour(self, agent: Channel, count: int, carried: Callable[[int], None]) -> None:
        """Carry `count` bytes more of a body to the agent, past our own memory; the caller sets the deadlines."""
        upstream = self._connection()
        try:
            poured = await agent.send_from(upstream, count, carried)
        except ConnectionError as lost:
            if not upstream.failed:
                raise  # the agent is gone, which is no fault of the registry
            raise RegistryUnavailableError(f"the registry at {self._target} hung up") from lost
        if poured < count:
            raise RegistryUnavailableError(f"the registry at {self._target} broke off its answer")

    def finish(self, answer: ResponseHead) -> None:
        """Drop the connection after an answer that was the last on it."""
        if self._last or not answer.keep_alive:
            self.abort()

    async def body(self, answer: ResponseHead) -> AsyncGenerator[Sequence[Piece], None]:
        """Yield the answer's body as it comes, without its coding; the caller sets the deadlines."""
        reader = body_reader(answer.body, RegistryUnavailableError)
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
                raise RegistryUnavailableError(f"the registry at {self._target} broke off its answer")
        self.finish(answer)

    async def _ask_once(self, method: str, wire: bytes) -> ResponseHead:
        await self.send(wire)
        return await self.receive_head(method)

    async def _receive_head(self, method: str) -> ResponseHead:
        while True:
            while (raw := self._inbox.take_head()) is None:
                data = await self._receive()
                if not data:
                    raise RegistryUnavailableError(f"the registry at {self._target} hung up without an answer")
                self._heard = True
                self._inbox.feed(data)
            answer = parse_response_head(method, raw)
            if answer.status >= 200:  # noqa: PLR2004 (an interim answer is not passed on: RFC 9110, section 15.2)
                return answer

    async def _receive(self) -> bytes:
        try:
            return await self._connection().read()
        except ConnectionError as lost:
            raise RegistryUnavailableError(f"the registry at {self._target} hung up") from lost

    def _connection(self) -> TargetSocket:
        assert self._upstream is not None  # noqa: S101 (`open` comes before every exchange)
        return self._upstream


class _LateStart:
    """Starts a timeout once a task is done, unless the wait is over by then."""

    __slots__ = ("_limit", "_seconds", "_waiting")

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._waiting = True

    def start(self, _: "asyncio.Task[None]") -> None:
        # The callback may already be on its way when the answer comes; a timeout that ended must not be touched.
        if self._waiting:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._seconds)

    def stop(self) -> None:
        self._waiting = False
