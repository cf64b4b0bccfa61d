"""The TCP connection under an SSH connection, with the back-pressure that asyncssh does not pass on.

asyncssh ignores `pause_writing` from its transport, so whoever writes waits on the line instead.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from tunnelmgr.errors import UnreachableError

SEND_AHEAD = 1024 * 1024
"""Bytes that may wait for the socket before writers are held, for all channels of a connection together."""


class Line(asyncio.Protocol):
    """Stands between the socket and asyncssh's protocol and passes everything on."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        self._room = asyncio.Event()
        self._room.set()

    async def writable(self) -> None:
        """Wait until the socket has taken enough of what was written; a lost line never blocks."""
        await self._room.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what may wait in the transport."""
        if isinstance(transport, asyncio.WriteTransport):
            transport.set_write_buffer_limits(high=SEND_AHEAD)
        self.protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass on what arrived."""
        self.protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on the end."""
        return self.protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let waiting writers go; they find their channels closed."""
        self._room.set()
        self.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """Hold the writers."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Let the writers go on."""
        self._room.set()


class Dialer:
    """Opens the line to the first address that answers; handed to asyncssh as its `tunnel`, whose form it has."""

    def __init__(self, addresses: Sequence[str], patience: float = 10.0) -> None:
        self._addresses = addresses
        self._patience = patience
        self.line: Line | None = None
        self.reached = ""

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], _host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect, trying each address in order of preference.

        Raises UnreachableError with the last address's reason. The caller sets the deadline for all of it; each
        address has its share, so that one that swallows packets leaves time for the next.
        """
        loop = asyncio.get_running_loop()
        refused = UnreachableError("the agent", "it has no address")
        for address in self._addresses:
            try:
                async with asyncio.timeout(self._patience / len(self._addresses)):
                    transport, line = await loop.create_connection(lambda: Line(factory()), address, port)
            except OSError as failed:
                refused = UnreachableError(f"{address} port {port}", _reason(failed))
                continue
            held: socket.socket = transport.get_extra_info("socket")
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.line, self.reached = line, address
            return transport, line.protocol
        raise refused


def _reason(failed: OSError) -> str:
    """Say it in the system's words: asyncio puts its own in their place, with the address once more."""
    if isinstance(failed, TimeoutError):
        return "no answer in time"
    if failed.errno and not isinstance(failed, socket.gaierror):
        return os.strerror(failed.errno)
    return failed.strerror or str(failed)
