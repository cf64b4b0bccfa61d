"""One TCP connection to a forward's target: the registry, or the server behind a raw relay.

Nothing is read ahead: unread bytes stay in the kernel, whose full buffer makes the target wait.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final, Self

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane.stream import Stream, connect
from tunnelmgr.errors import RegistryUnavailableError

CONNECT_TIMEOUT: Final = 5.0  # seconds
MAX_UNSENT: Final = 256 * 1024
"""Bytes that the kernel has not taken yet, above which `write` waits."""
MAX_READ: Final = 64 * 1024
"""Bytes that one `read` returns at most."""


async def connect_to(target: Endpoint, *, timeout: float = CONNECT_TIMEOUT) -> socket.socket:  # noqa: ASYNC109
    """Return a connected socket; raises RegistryUnavailableError."""
    try:
        async with asyncio.timeout(timeout):
            return await connect(target.host, target.port)
    except OSError as refused:
        reason = refused.strerror or "no answer in time"
        raise RegistryUnavailableError(f"the registry at {target} cannot be reached: {reason}") from refused


class TargetSocket:
    """An open connection; one task may read and one may write."""

    def __init__(self, connected: socket.socket) -> None:
        self._stream = Stream(connected)
        self._readable: asyncio.Future[bytes] | None = None

    @classmethod
    async def open(cls, target: Endpoint, *, timeout: float = CONNECT_TIMEOUT) -> Self:  # noqa: ASYNC109
        """Connect; raises RegistryUnavailableError."""
        return cls(await connect_to(target, timeout=timeout))

    @property
    def idle(self) -> bool:
        """Whether the connection is open and nothing has arrived on it."""
        return self._stream.silent

    @property
    def failed(self) -> bool:
        """Whether the connection was lost, not closed in order."""
        return self._stream.failure is not None

    # --- reading ---

    async def read(self) -> bytes:
        """Return what has arrived, or `b""` at the end of the stream; raises ConnectionError."""
        if (data := self._receive()) is not None:
            return data
        self._readable = asyncio.get_running_loop().create_future()
        self._stream.notify_readable(self._on_readable)
        try:
            return await self._readable
        finally:
            self._readable = None

    def notify_readable(self, reader: Callable[[], None] | None) -> None:
        """See `ByteSource`."""
        self._stream.notify_readable(reader)

    def receive_into(self, buffers: Sequence[memoryview]) -> int | None:
        """See `ByteSource`."""
        return self._stream.receive_into(buffers)

    def _receive(self) -> bytes | None:
        if self._stream.closed:
            return b""
        data = self._stream.receive(MAX_READ)
        if data == b"" and self._stream.failure is not None:
            raise self._stream.failure
        return data

    def _on_readable(self) -> None:
        if self._readable is None or self._readable.done():
            # It stays registered after a read: in most cases the next read begins before the next bytes arrive.
            self._stream.notify_readable(None)
            return
        try:
            data = self._receive()
        except ConnectionError as lost:
            self._readable.set_exception(lost)
            return
        if data is not None:
            self._readable.set_result(data)

    # --- writing ---

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, waiting while too much is unsent; raises ConnectionError."""
        if not self.send(data):
            await self.drained()

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        """Send; returns False if the caller should wait for `drained` before it sends more. Raises ConnectionError."""
        self._check_writable()
        self._stream.send(data)
        return self._stream.unsent <= MAX_UNSENT

    async def drained(self) -> None:
        """Wait until everything is sent; raises ConnectionError."""
        await self._stream.drained()
        self._check_writable()

    def write_eof(self) -> None:
        """Close the direction to the target; the other direction stays open."""
        self._stream.end()

    def _check_writable(self) -> None:
        if self._stream.closed or self._stream.failure is not None:
            raise ConnectionResetError("the connection is closed") from self._stream.failure

    # --- ending ---

    def close(self) -> None:
        """Close once everything has been sent."""
        self._stream.close()

    def abort(self) -> None:
        """Close at once; a waiting `read` returns `b""`."""
        self._stream.abort()
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(b"")
