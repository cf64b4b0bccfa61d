"""One TCP connection to the registry: a `Channel` towards our own side.

A plain asyncio protocol instead of streams: what the socket gave is handed on as it is, without another buffer.
"""

import asyncio
from collections import deque
from typing import Final, Self

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError

CONNECT_TIMEOUT: Final = 5.0
HELD_UNSENT: Final = 256 * 1024
"""Bytes written and not yet taken by the kernel, above which `write` waits."""
HELD_UNREAD: Final = 256 * 1024
"""Bytes received and not yet read, above which the socket is no longer read; one receive more may come on top.

As much as asyncio receives at once: with less, every full receive would pause the socket and resume it.
"""


class Upstream(asyncio.Protocol):
    """An open connection; one task may read and one may write."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received: deque[bytes] = deque()
        self._unread = 0
        self._reading = True
        self._ended = False
        self._failure: Exception | None = None
        self._lost = False
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._writing = True

    @classmethod
    async def open(cls, target: Endpoint, *, timeout: float = CONNECT_TIMEOUT) -> Self:  # noqa: ASYNC109
        """Connect; raises RegistryUnavailableError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, upstream = await loop.create_connection(cls, target.host, target.port)
        except OSError as refused:
            reason = refused.strerror or "no answer in time"
            raise RegistryUnavailableError(f"the registry at {target} cannot be reached: {reason}") from refused
        return upstream

    @property
    def idle(self) -> bool:
        """Whether the connection stands and nothing unasked has arrived."""
        return not (self._ended or self._lost or self._received)

    async def read(self) -> bytes:
        """Return what has arrived, or `b""` at its end; raises ConnectionError."""
        while not self._received:
            if self._failure is not None:
                raise ConnectionResetError(str(self._failure)) from self._failure
            if self._ended or self._lost:
                return b""
            self._readable = asyncio.get_running_loop().create_future()
            await self._readable
        data = self._received.popleft()
        self._unread -= len(data)
        if not self._reading and self._unread <= HELD_UNREAD:
            self._reading = True
            self._open_transport().resume_reading()
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, waiting while too much is unsent; raises ConnectionError."""
        if not self.send(data):
            await self.drained()

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        """Send; returns whether more may follow before `drained`. Raises ConnectionError."""
        self._check_writable()
        self._open_transport().write(data)
        return self._writing

    async def drained(self) -> None:
        """Wait while too much is unsent; raises ConnectionError."""
        while not (self._writing or self._lost):
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable
        self._check_writable()

    def write_eof(self) -> None:
        """End our direction."""
        if not self._lost and not self._open_transport().is_closing():
            self._open_transport().write_eof()

    def close(self) -> None:
        """Close once everything is sent."""
        self._open_transport().close()

    def abort(self) -> None:
        """Close at once."""
        self._open_transport().abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio)."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (create_connection makes no other)
        self._transport = transport
        transport.set_write_buffer_limits(high=HELD_UNSENT)

    def data_received(self, data: bytes) -> None:
        """Queue what arrived (asyncio)."""
        self._received.append(data)
        self._unread += len(data)
        if self._unread > HELD_UNREAD and self._reading:
            self._reading = False
            self._open_transport().pause_reading()
        _wake(self._readable)

    def eof_received(self) -> bool:
        """Remember the end and keep our direction open (asyncio)."""
        self._ended = True
        _wake(self._readable)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits (asyncio)."""
        self._lost = True
        self._failure = exc
        _wake(self._readable)
        _wake(self._writable)

    def pause_writing(self) -> None:
        """Make `write` wait (asyncio)."""
        self._writing = False

    def resume_writing(self) -> None:
        """Let `write` go on (asyncio)."""
        self._writing = True
        _wake(self._writable)

    def _check_writable(self) -> None:
        if self._lost or self._open_transport().is_closing():
            raise ConnectionResetError("the connection is closed")

    def _open_transport(self) -> asyncio.Transport:
        assert self._transport is not None  # noqa: S101 (`open` returns only connected ones)
        return self._transport


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
