"""Both ends of one channel over a real SSH connection, and a socket whose bytes our end sends."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import asyncssh

from tests.ssh.ssh_server import Sshd, free_port, generate, running_sshd
from tests.until import until
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane import pump
from tunnelmgr.dataplane.asyncssh_internals import account
from tunnelmgr.dataplane.channel import ForwardedChannel, NoOwner
from tunnelmgr.dataplane.ssh_packets import PACKET_DATA_BYTES
from tunnelmgr.dataplane.stream import Stream
from tunnelmgr.dataplane.transport import SshTransport
from tunnelmgr.ssh.client import SshConnection, dial
from tunnelmgr.ssh.login import Login
from tunnelmgr.ssh.peer import EXPOSED_MESSAGE

KIB, MIB = 1024, 1024 * 1024
CONTENT = random.Random(5).randbytes(4 * MIB)  # noqa: S311 - any bytes that repeat nowhere
KEY, HOST_KEY = generate(), generate()
ALL = 1 << 60
"""A limit that no source reaches."""


class FedStream:
    """A source, and the socket that feeds it."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            self.feed, _ = server.accept()
        self.feed.setblocking(False)
        self.stream = Stream(ours, lambda _: None)

    async def send(self, *pieces: bytes, end: bool = True) -> None:
        """Send pieces one by one, and the end."""
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
    """Both ends of a channel, the sizes of the batches that our end sent, and the source that it sends from."""

    ours: ForwardedChannel
    reader: asyncssh.SSHReader[bytes]
    writer: asyncssh.SSHWriter[bytes]
    connection: SshConnection
    server: asyncssh.SSHServerConnection
    source: FedStream = field(default_factory=FedStream)
    bulk: list[int] = field(default_factory=list)

    @property
    def conn(self) -> asyncssh.SSHClientConnection:
        """The connection on our side, as asyncssh's object."""
        return self.connection._conn

    @property
    def chan(self) -> asyncssh.SSHTCPChannel[bytes]:
        """The channel on our side, as asyncssh's object."""
        assert self.ours._ssh is not None
        return self.ours._ssh

    @property
    def transport(self) -> SshTransport:
        """The transport on our side."""
        return self.connection._transport

    async def agent_processed(self) -> None:
        """Wait until everything that the agent has sent so far is processed, and every step that it caused has run."""
        self.connection._peer.exposed = False
        self.server.send_debug(EXPOSED_MESSAGE)
        await until(lambda: self.connection.exposed)
        await until(lambda: not self.transport.share.steps)

    async def sender_waits(self) -> None:
        """Wait until our end has sent all that it may: the source is not read, and nothing is unsent."""
        await until(lambda: self.source.stream._reader is None and not self.transport.get_write_buffer_size())

    async def send_all(self, limit: int = ALL) -> int:
        """Send everything from the source, and the end."""
        count = await self.ours.send_from(self.source.stream, limit, lambda _: None)
        self.ours.write_eof()
        return count

    async def carried(self, *pieces: bytes) -> bytes:
        """Send the pieces while the agent reads; returns what it read."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.source.send(*pieces), name="source")
            sending = tasks.create_task(self.send_all(), name="send")
            reading = tasks.create_task(self.reader.read(), name="read")
        assert sending.result() == sum(map(len, pieces))
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
    """Open a channel with the agent's window and packet size; other options are the server's."""
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
    """Record the size of each batch that is sent past asyncssh."""

    def counting(chan: asyncssh.SSHTCPChannel[bytes], count: int) -> None:
        pair.bulk.append(count)
        account(chan, count)

    with mock.patch.object(pump, "account", counting):
        yield
