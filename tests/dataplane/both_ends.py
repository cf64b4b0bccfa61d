"""Both ends of one channel over a real SSH connection, and a socket whose bytes our end carries."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, free_port, generate, sshd_at_work
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane import pump
from tunnelmgr.dataplane.asyncssh_internals import account
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.ssh_packets import LARGEST
from tunnelmgr.dataplane.stream import Stream
from tunnelmgr.ssh.client import SshConnection, dial
from tunnelmgr.ssh.login import Login

KIB, MIB = 1024, 1024 * 1024
CONTENT = random.Random(5).randbytes(4 * MIB)  # noqa: S311 - any bytes that repeat nowhere
KEY, HOST_KEY = generate(), generate()
ALL = 1 << 60
"""A limit that no source comes to."""


class Tap:
    """A source, and the socket that feeds it."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            self.feed, _ = server.accept()
        self.feed.setblocking(False)
        self.stream = Stream(ours, lambda _: None)

    async def send(self, *pieces: bytes, end: bool = True) -> None:
        """Send pieces, each on its own, and the end."""
        for piece in pieces:
            await asyncio.get_running_loop().sock_sendall(self.feed, piece)
            await asyncio.sleep(0)
        if end:
            self.feed.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close both ends."""
        self.stream.abort()
        self.feed.close()


@dataclass
class Both:
    """Both ends of a channel, what our end sent in bulk, and the source of what it pours."""

    ours: ForwardedChannel
    reader: asyncssh.SSHReader[bytes]
    writer: asyncssh.SSHWriter[bytes]
    connection: SshConnection
    server: asyncssh.SSHServerConnection
    tap: Tap = field(default_factory=Tap)
    bulk: list[int] = field(default_factory=list)

    @property
    def conn(self) -> asyncssh.SSHClientConnection:
        """The connection as asyncssh has it, on our side."""
        return self.connection._conn

    @property
    def chan(self) -> asyncssh.SSHTCPChannel[bytes]:
        """The channel as asyncssh has it, on our side."""
        assert self.ours._ssh is not None
        return self.ours._ssh

    async def pour(self, limit: int = ALL) -> int:
        """Carry what the tap gives, and the end."""
        count = await self.ours.pour(self.tap.stream, limit, lambda _: None)
        self.ours.write_eof()
        return count

    async def carried(self, *pieces: bytes) -> bytes:
        """Carry the pieces while the agent reads; returns what it read."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.tap.send(*pieces), name="source")
            pouring = tasks.create_task(self.pour(), name="pour")
            reading = tasks.create_task(self.reader.read(), name="read")
        assert pouring.result() == sum(map(len, pieces))
        return reading.result()


@asynccontextmanager
async def opened(window: int = 2 * MIB, packet: int = LARGEST, **options: object) -> AsyncIterator[Both]:
    """Open a channel with this window and packet size of the agent's; the server takes more options."""
    async with sshd_at_work(Sshd(HOST_KEY, KEY), **options) as sshd:
        connection = await dial(sshd.spec(), Login("tunnel", KEY, 5.0))
        arrived: asyncio.Queue[ForwardedChannel] = asyncio.Queue()
        endpoint = Endpoint("127.0.0.1", free_port())
        both: Both | None = None
        try:
            async with asyncio.timeout(30):
                await connection.listen(endpoint, lambda: None, arrived.put_nowait, lambda: None)
                server = sshd.connection
                reader, writer = await server.open_connection(
                    endpoint.host, endpoint.port, window=window, max_pktsize=packet
                )
                both = Both(await arrived.get(), reader, writer, connection, server)
                with counted(both):
                    yield both
        finally:
            if both is not None:
                both.tap.close()
            connection.abort()
            await connection._conn.wait_closed()


@contextmanager
def counted(both: Both) -> Iterator[None]:
    """Count what goes out in bulk."""

    def counting(chan: asyncssh.SSHTCPChannel[bytes], count: int) -> None:
        both.bulk.append(count)
        account(chan, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pump, "account", counting)
        yield
