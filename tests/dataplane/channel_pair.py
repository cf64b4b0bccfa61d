"""Both ends of one channel over a real SSH connection, and a socket whose bytes our end carries."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, free_port, generate, running_sshd
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane import pump
from tunnelmgr.dataplane.asyncssh_internals import account
from tunnelmgr.dataplane.channel import ForwardedChannel, NoOwner
from tunnelmgr.dataplane.ssh_packets import PACKET_DATA_BYTES
from tunnelmgr.dataplane.stream import Stream
from tunnelmgr.ssh.client import SshConnection, dial
from tunnelmgr.ssh.login import Login

KIB, MIB = 1024, 1024 * 1024
CONTENT = random.Random(5).randbytes(4 * MIB)  # noqa: S311 - any bytes that repeat nowhere
KEY, HOST_KEY = generate(), generate()
ALL = 1 << 60
"""A limit that no source comes to."""


class FedStream:
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
class ChannelPair:
    """Both ends of a channel, what our end sent in bulk, and the source of what it pours."""

    ours: ForwardedChannel
    reader: asyncssh.SSHReader[bytes]
    writer: asyncssh.SSHWriter[bytes]
    connection: SshConnection
    server: asyncssh.SSHServerConnection
    source: FedStream = field(default_factory=FedStream)
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
        """Carry what the source gives, and the end."""
        count = await self.ours.send_from(self.source.stream, limit, lambda _: None)
        self.ours.write_eof()
        return count

    async def carried(self, *pieces: bytes) -> bytes:
        """Carry the pieces while the agent reads; returns what it read."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.source.send(*pieces), name="source")
            pouring = tasks.create_task(self.pour(), name="pour")
            reading = tasks.create_task(self.reader.read(), name="read")
        assert pouring.result() == sum(map(len, pieces))
        return reading.result()


class Accepting(NoOwner):
    """Admits every channel, and puts it into a queue."""

    def __init__(self) -> None:
        self.opened: asyncio.Queue[ForwardedChannel] = asyncio.Queue()
        self.closed = asyncio.Event()

    def admit_channel(self) -> None:
        """Admit it."""

    def channel_opened(self, channel: ForwardedChannel) -> None:
        """Keep it."""
        self.opened.put_nowait(channel)

    def channel_closed(self) -> None:
        """Note the end of one."""
        self.closed.set()


@asynccontextmanager
async def open_channel_pair(
    window: int = 2 * MIB, packet: int = PACKET_DATA_BYTES, **options: object
) -> AsyncIterator[ChannelPair]:
    """Open a channel with this window and packet size of the agent's; the server takes more options."""
    async with running_sshd(Sshd(HOST_KEY, KEY), **options) as sshd:
        connection = await dial(sshd.spec(), Login("tunnel", KEY, 5.0))
        owner = Accepting()
        endpoint = Endpoint("127.0.0.1", free_port())
        pair: ChannelPair | None = None
        try:
            async with asyncio.timeout(30):
                await connection.listen(endpoint, owner)
                server = sshd.connection
                reader, writer = await server.open_connection(
                    endpoint.host, endpoint.port, window=window, max_pktsize=packet
                )
                pair = ChannelPair(await owner.opened.get(), reader, writer, connection, server)
                with counted(pair):
                    yield pair
        finally:
            if pair is not None:
                pair.source.close()
            connection.abort()
            await connection._conn.wait_closed()


@contextmanager
def counted(pair: ChannelPair) -> Iterator[None]:
    """Count what goes out in bulk."""

    def counting(chan: asyncssh.SSHTCPChannel[bytes], count: int) -> None:
        pair.bulk.append(count)
        account(chan, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pump, "account", counting)
        yield
