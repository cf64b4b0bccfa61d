"""Kept connections to one registry, for requests without a body whose whole response fits in memory.

A request takes no task and no timer of its own: it is written at once to an idle connection, and the response is
parsed where its bytes arrive. A connection that the registry has closed meanwhile is noticed at once, since all are
watched.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane.stream import Stream
from tunnelmgr.deadline import Alarm
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.head_parser import Coding, ParseBuffer, ResponseHead, parse_response_head
from tunnelmgr.gate.target_socket import MAX_READ, connect_to

MAX_ANSWER_BYTES: Final = 128 * 1024
"""Bytes of the body of an answer; each channel may hold one while its agent does not read."""
MAX_IDLE: Final = 16
"""Connections that are kept for the next requests."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A registry's response, read whole."""

    head: ResponseHead
    body: bytes = b""


Outcome = Answer | RegistryUnavailableError | None
"""An answer, why there is none, or None if it does not fit in memory."""


class RegistryPool:
    """The connections to one registry; `timeout` bounds each request, in seconds."""

    def __init__(self, target: Endpoint, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self._idle: list[_PooledConnection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False

    def request(self, method: str, wire: bytes, on_outcome: Callable[[Outcome], None]) -> None:
        """Send one request, and call `on_outcome` once, later."""
        pending = _Pending(method, wire, on_outcome, kept=bool(self._idle))
        if self._idle:
            self._idle.pop().start(pending)
        else:
            self.open(pending)

    def open(self, pending: "_Pending") -> None:
        """Open a connection, and send a request on it."""
        task = asyncio.get_running_loop().create_task(self._open(pending), name=f"connect to {self.target}")
        self._opening.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            if task.cancelled():
                pending.fail(f"the connection to the registry at {self.target} was given up")

        task.add_done_callback(ended)

    async def _open(self, pending: "_Pending") -> None:
        pending.kept = False
        try:
            stream = Stream(await connect_to(self.target))
        except RegistryUnavailableError as refused:
            pending.fail(str(refused))
            return
        _PooledConnection(stream, self, pending)

    def keep(self, connection: "_PooledConnection") -> bool:
        """Keep a connection for the next request, unless there are enough; returns whether it is kept."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            return False
        self._idle.append(connection)
        return True

    def drop(self, connection: "_PooledConnection") -> None:
        """Remove a connection that the registry has closed."""
        self._idle.remove(connection)

    def close(self) -> None:
        """Close the idle connections, and keep no more."""
        self._closed = True
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        for task in self._opening:
            task.cancel()


@dataclass(slots=True)
class _Pending:
    """One request that waits for its response; `kept` says whether its connection has served others before."""

    method: str
    wire: bytes
    settle: Callable[[Outcome], None]
    kept: bool

    def fail(self, reason: str) -> None:
        self.settle(RegistryUnavailableError(reason))


class _PooledConnection:
    """One connection, which serves one request at a time."""

    def __init__(self, stream: Stream, pool: RegistryPool, pending: _Pending) -> None:
        self._stream = stream
        self._pool = pool
        self._inbox = ParseBuffer(RegistryUnavailableError)
        self._head: ResponseHead | None = None
        self._alarm = Alarm(self._on_late)
        self.start(pending)
        stream.notify_readable(self._on_readable)

    def start(self, pending: _Pending) -> None:
        """Send a request; its outcome is settled when the response is complete."""
        self._pending: _Pending | None = pending
        self._head = None
        self._alarm.set(self._pool.timeout)
        self._stream.send(pending.wire)

    def abort(self) -> None:
        """Close at once."""
        self._alarm.close()
        self._stream.abort()

    def _on_late(self) -> None:
        if self._pending is not None:
            self._fail(self._pending, f"did not answer within {self._pool.timeout:g} s")

    def _on_readable(self) -> None:
        try:
            data = self._stream.receive(MAX_READ)
        except ConnectionError:
            data = b""
        if data is None:
            return
        if self._pending is None:  # closed, or bytes that answer no request
            self._pool.drop(self)
            self.abort()
        elif data:
            self._inbox.feed(data)
            self._parse(self._pending)
        else:
            self._on_end(self._pending)

    def _on_end(self, pending: _Pending) -> None:
        """Send the request again if an idle connection was closed at this moment (RFC 9112, section 9.5)."""
        if pending.kept and self._head is None and not self._inbox:
            self.abort()
            self._pool.open(pending)
        else:
            self._fail(pending, "closed the connection without a complete response")

    def _parse(self, pending: _Pending) -> None:
        try:
            self._head = head = self._head or self._take_head(pending.method)
        except RegistryUnavailableError as invalid:
            self.abort()
            pending.fail(str(invalid))
            return
        if head is None:
            return
        if head.body.coding not in {Coding.NONE, Coding.COUNTED} or head.body.length > MAX_ANSWER_BYTES:
            self.abort()
            pending.settle(None)
        elif len(self._inbox) >= head.body.length:
            self._finish(pending, head)

    def _take_head(self, method: str) -> ResponseHead | None:
        while (raw := self._inbox.take_head()) is not None:
            head = parse_response_head(method, raw)
            if head.status >= 200:  # noqa: PLR2004 (interim responses are not forwarded: RFC 9110, section 15.2)
                return head
        return None

    def _finish(self, pending: _Pending, head: ResponseHead) -> None:
        self._alarm.clear()
        data, self._pending = self._inbox.take_all(), None
        if len(data) > head.body.length or not head.keep_alive or not self._pool.keep(self):
            self.abort()
        pending.settle(Answer(head, data[: head.body.length]))

    def _fail(self, pending: _Pending, reason: str) -> None:
        self.abort()
        pending.fail(f"the registry at {self._pool.target} {reason}")
