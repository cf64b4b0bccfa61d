"""A transport that reads only when a test calls its reader, and a protocol that records what it gets."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.until import until
from tunnelmgr.dataplane.transport import SshTransport


class Recording(asyncio.Protocol):
    """Records the calls that asyncssh's protocol would get."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        """Note data."""
        self.calls.append(data)

    def eof_received(self) -> bool:
        """Note the end."""
        self.calls.append("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the loss."""
        self.calls.append(("lost", exc))


@contextmanager
def unread(make: Callable[[], asyncio.Protocol]) -> Iterator[tuple[SshTransport, socket.socket]]:
    """Return a transport that reads only when the test calls its reader, and the socket at the other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport = SshTransport(make, socket.create_connection(server.getsockname()))
        other, _ = server.accept()
    transport._stream.notify_readable(None)
    with other:
        yield transport, other
    transport.abort()


async def arrive(transport: SshTransport, other: socket.socket, data: bytes) -> None:
    """Send from the other end, and wait until it can be read."""
    other.sendall(data)
    await until(lambda: not transport._stream.silent)
