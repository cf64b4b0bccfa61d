"""From an agent's addresses to an SSH transport: each address is tried in order, and the socket is tuned."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from weakref import ref

from tunnelmgr.dataplane.socket_options import tune
from tunnelmgr.dataplane.stream import connect, first_bytes
from tunnelmgr.dataplane.transport import SshTransport
from tunnelmgr.errors import UnreachableError


class Dialer:
    """Connects to the first address that answers; passed to asyncssh as its `tunnel`, whose interface it has.

    `patience` is the limit for everything, in seconds.
    """

    def __init__(self, addresses: Sequence[str], patience: float = 10.0) -> None:
        self._addresses = addresses
        self._patience = patience
        self._connected: socket.socket | None = None
        self.left = patience
        """Seconds left for the handshake."""
        self._transport: ref[SshTransport] | None = None  # weak: asyncssh keeps the dialer as long as the connection
        self.reached = ""

    async def reach(self, port: int) -> None:
        """Connect to the first address, in order of preference, whose server sends something.

        An SSH server sends its identification string first (RFC 4253, section 4.2), so nothing of a handshake is
        allocated before. Raises UnreachableError with the last address's reason. Each address gets an equal part of the
        time, so that one that drops packets leaves time for the next.
        """
        clock = asyncio.get_running_loop()
        began = clock.time()
        self._connected = await self._first(port, listens=True)
        self.left = self._patience - (clock.time() - began)

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], _host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Make the transport on the connection that `reach` made, or on a new one.

        Raises UnreachableError as `reach` does.
        """
        connected, self._connected = self._connected, None
        transport = SshTransport(factory, connected or await self._first(port))
        self._transport = ref(transport)
        return transport, transport.protocol

    @property
    def transport(self) -> SshTransport | None:
        """The transport that was made, as long as its connection refers to it."""
        return None if self._transport is None else self._transport()

    def receive_count(self) -> int:
        """Return how often bytes have arrived; see `ReceiveProgress`."""
        transport = self.transport
        return 0 if transport is None else transport.reader.reads

    def close(self) -> None:
        """Close the connection, unless a transport was made on it."""
        if self._connected is not None:
            self._connected.close()

    async def _first(self, port: int, *, listens: bool = False) -> socket.socket:
        refused = UnreachableError("the agent", "it has no address")
        for address in self._addresses:
            share = self._patience / len(self._addresses)
            try:
                async with asyncio.timeout(share):
                    connected = await _connected(address, port, listens=listens)
            except OSError as failed:
                refused = UnreachableError(f"{address} port {port}", _reason(failed, share))
                continue
            tune(connected)
            self.reached = address
            return connected
        raise refused


async def _connected(address: str, port: int, *, listens: bool) -> socket.socket:
    """Connect, and wait for the server's first bytes if `listens`; raises OSError."""
    connected = await connect(address, port)
    if listens:
        try:
            await first_bytes(connected)
        except BaseException:
            connected.close()
            raise
    return connected


def _reason(failed: OSError, patience: float) -> str:
    """Return the system's message; asyncio's own repeats the address."""
    if failed.errno and not isinstance(failed, socket.gaierror):
        return os.strerror(failed.errno)
    if isinstance(failed, TimeoutError):
        return f"no answer within {patience:g} s"
    return failed.strerror or str(failed)
