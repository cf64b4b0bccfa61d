"""One TCP connection to the registry: bytes both ways, and the `Source` of what an agent pulls.

Nothing is read ahead: what nobody asks for waits in the kernel, and so with the registry.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final, Self

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane.stream import Stream, connect
from tunnelmgr.errors import RegistryUnavailableError

CONNECT_TIMEOUT: Final = 5.0
MAX_UNSENT: Final = 256 * 1024
"""Bytes written and not yet taken by the kernel, above which `write` waits."""
MAX_READ: Final = 64 * 1024
"""Bytes that one `read` returns at most."""


class TargetSocket:
    """An open connection; one task may read and one may write."""

    def __init__(self, connected: socket.socket) -> None:
        self._stream = Stream(connected)
        self._readable: asyncio.Future[bytes] | None = None

    @classmethod
    async def open(cls, target: Endpoint, *, timeout: float = CONNECT_TIMEOUT) -> Self:  # noqa: ASYNC109
        """Connect; raises RegistryUnavailableError."""
        try:
            async with asyncio.timeout(timeout):
                connected = await connect(target.host, target.port)
        except OSError as refused:
            reason = refused.strerror or "no answer in time"
            raise RegistryUnavailableError(f"the registry at {target} cannot be reached: {reason}") from refused
        return cls(connected)

    @property
    def idle(self) -> bool:
        """Whether the connection stands and nothing unasked has arrived."""
        return self._stream.silent

    @property
    def failed(self) -> bool:
        """Whether the connection broke, rather than ended."""
        return self._stream.failure is not None

    # --- reading ---

    async def read(self) -> bytes:
        """Return what has arrived, or `b""` at its end; raises ConnectionError."""
        if (data := self._receive()) is not None:
            return data
        self._readable = asyncio.get_running_loop().create_future()
        self._stream.notify_readable(self._on_readable)
        try:
            return await self._readable
        finally:
            self._readable = None

    def notify_readable(self, reader: Callable[[], None] | None) -> None:
        """See `Source`."""
        self._stream.notify_readable(reader)

    def receive_into(self, buffers: Sequence[memoryview]) -> int | None:
        """See `Source`."""
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
            self._stream.notify_readable(
                None
            )  # heeded on after a read, since the next one mostly comes before the next bytes
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
        """Send; returns whether more may follow before `drained`. Raises ConnectionError."""
        self._check_writable()
        self._stream.send(data)
        return self._stream.unsent <= MAX_UNSENT

    async def drained(self) -> None:
        """Wait until everything is sent; raises ConnectionError."""
        await self._stream.drained()
        self._check_writable()

    def write_eof(self) -> None:
        """End our direction."""
        self._stream.end()

    def _check_writable(self) -> None:
        if self._stream.closed or self._stream.failure is not None:
            raise ConnectionResetError("the connection is closed") from self._stream.failure

    # --- ending ---

    def close(self) -> None:
        """Close once everything is sent."""
        self._stream.close()

    def abort(self) -> None:
        """Close at once; whoever waits is let go."""
        self._stream.abort()
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(b"")
