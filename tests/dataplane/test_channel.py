"""One forwarded stream over a real SSH connection: its ends and its memory bounds."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncssh
import pytest

from tests.dataplane.channel_pair import Accepting
from tests.ssh.ssh_server import Sshd, free_port, running_sshd
from tests.until import until
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane.asyncssh_internals import open_window
from tunnelmgr.dataplane.channel import READ_AHEAD_BYTES, ForwardedChannel
from tunnelmgr.dataplane.receive_window import INITIAL_WINDOW_BYTES, MAX_WINDOW_BYTES
from tunnelmgr.dataplane.transport import MAX_UNSENT_BYTES
from tunnelmgr.ssh.client import SshConnection, dial
from tunnelmgr.ssh.login import Login
from tunnelmgr.ssh.peer import EXPOSED_MESSAGE

HUGE = 1 << 31
"""A window that a hostile agent grants and never fills."""
PIECE = bytes(64 * 1024)


@dataclass
class Pair:
    """Both ends of one channel."""

    ours: ForwardedChannel
    reader: asyncssh.SSHReader[bytes]
    writer: asyncssh.SSHWriter[bytes]
    connection: SshConnection
    ended: asyncio.Event

    @property
    def buffered(self) -> int:
        """The bytes that are unsent in our transport."""
        transport = self.connection._conn._transport
        return int(transport.get_write_buffer_size()) if transport else 0


@asynccontextmanager
async def connected_pair(sshd: Sshd, login: Login, window: int = 2 << 20) -> AsyncIterator[Pair]:
    """Open one channel as a client on the agent would, with the agent's receive window."""
    connection = await dial(sshd.spec(), login)
    owner = Accepting()
    endpoint = Endpoint("127.0.0.1", free_port())
    try:
        async with asyncio.timeout(10):
            await connection.listen(endpoint, owner)
            reader, writer = await sshd.connection.open_connection(endpoint.host, endpoint.port, window=window)
            ours = await owner.opened.get()
        yield Pair(ours, reader, writer, connection, owner.closed)
    finally:
        connection.abort()
        await connection._conn.wait_closed()


async def read_all(channel: ForwardedChannel) -> bytes:
    """Read until the end."""
    found = b""
    while data := await channel.read():
        found += data
    return found


# --- ends ---


async def test_bytes_go_both_ways(sshd: Sshd, login: Login) -> None:
    """Bytes, bytearray and memoryview are sent, and what the agent sends is received."""
    async with connected_pair(sshd, login) as pair:
        pair.writer.write(b"ping")
        assert await pair.ours.read() == b"ping"
        for data in (b"po", bytearray(b"n"), memoryview(b"g")):
            await pair.ours.write(data)
        assert await pair.reader.readexactly(4) == b"pong"


async def test_the_agents_end_is_an_empty_read_and_our_side_stays_open(sshd: Sshd, login: Login) -> None:
    """After the agent's EOF reads return `b""`, and writes still arrive."""
    async with connected_pair(sshd, login) as pair:
        pair.writer.write(b"question")
        pair.writer.write_eof()

        assert await read_all(pair.ours) == b"question"
        assert await pair.ours.read() == b""
        await pair.ours.write(b"answer")
        pair.ours.close()
        assert await pair.reader.read() == b"answer"


async def test_our_end_is_the_agents_end_and_its_side_stays_open(sshd: Sshd, login: Login) -> None:
    """After our EOF the agent can still send."""
    async with connected_pair(sshd, login) as pair:
        await pair.ours.write(b"answer")
        pair.ours.write_eof()

        assert await pair.reader.read() == b"answer"
        pair.writer.write(b"more")
        assert await pair.ours.read() == b"more"


async def test_an_orderly_close_after_the_end_is_not_a_reset(sshd: Sshd, login: Login) -> None:
    """If the agent sends, ends and closes, all bytes are read, and then the end."""
    async with connected_pair(sshd, login) as pair:
        pair.writer.write(b"last words")
        pair.writer.write_eof()
        pair.writer.close()
        await asyncio.wait_for(pair.ended.wait(), 5)

        assert await read_all(pair.ours) == b"last words"


async def test_a_channel_closed_in_the_middle_is_a_reset_after_what_arrived(sshd: Sshd, login: Login) -> None:
    """If the agent closes without EOF, the received bytes are read, and then ConnectionResetError is raised."""
    async with connected_pair(sshd, login) as pair:
        pair.writer.write(b"half a")
        pair.writer.channel.abort()
        await asyncio.wait_for(pair.ended.wait(), 5)

        assert await pair.ours.read() == b"half a"
        with pytest.raises(ConnectionResetError):
            await pair.ours.read()
        with pytest.raises(ConnectionResetError):
            await pair.ours.write(b"x")


async def test_an_abort_ends_the_agents_side_and_the_reader_here(sshd: Sshd, login: Login) -> None:
    """An abort ends the agent's reads, and raises ConnectionResetError in a read that waits here."""
    async with connected_pair(sshd, login) as pair, asyncio.TaskGroup() as tasks, asyncio.timeout(5):

        async def wait() -> None:
            with pytest.raises(ConnectionResetError):
                await pair.ours.read()

        tasks.create_task(wait())
        pair.ours.abort()
        assert await pair.reader.read() == b""
        await pair.ended.wait()


async def test_a_lost_connection_wakes_reader_and_writer(sshd: Sshd, login: Login) -> None:
    """A lost connection raises ConnectionResetError in reads and writes that wait."""
    async with connected_pair(sshd, login, window=1024) as pair, asyncio.TaskGroup() as tasks, asyncio.timeout(5):

        async def write() -> None:
            with pytest.raises(ConnectionResetError):
                await pair.ours.write(PIECE * 4)

        async def read() -> None:
            with pytest.raises(ConnectionResetError):
                await pair.ours.read()

        tasks.create_task(write())
        tasks.create_task(read())
        await until(lambda: not pair.ours._send_window_open.is_set())
        sshd.cut()


async def test_a_closed_channel_can_be_ended_again(sshd: Sshd, login: Login) -> None:
    """On a closed channel, every way of ending it does nothing, in any order."""
    async with connected_pair(sshd, login) as pair:
        pair.ours.close()
        pair.ours.write_eof()
        pair.ours.close()
        pair.ours.abort()
        await asyncio.wait_for(pair.ended.wait(), 5)
        pair.ours.write_eof()
        pair.ours.close()
        pair.ours.abort()
        with pytest.raises(ConnectionResetError):
            await pair.ours.write(b"x")


# --- bounds ---


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
async def test_an_agent_that_sends_faster_than_we_read_has_to_wait(
    key: asyncssh.SSHKey, host_key: asyncssh.SSHKey, login: Login, cipher: str
) -> None:
    """Unread bytes are bounded by the window, however slowly they are read, and none is lost."""
    total, got = 16 << 20, 0
    async with (
        running_sshd(Sshd(host_key, key), encryption_algs=[cipher]) as sshd,
        connected_pair(sshd, login) as pair,
        asyncio.timeout(30),
    ):
        pair.writer.write(bytes(total))
        pair.writer.write_eof()
        await until(lambda: pair.ours._received.size == INITIAL_WINDOW_BYTES)
        while data := await pair.ours.read():
            got += len(data)
            await asyncio.sleep(0)  # slower than the agent sends
            await asyncio.sleep(0)
            assert pair.ours._received.size <= MAX_WINDOW_BYTES
        assert pair.ours._ssh is not None
        assert pair.ours._ssh._recv_buf == []

    assert got == total


@pytest.mark.usefixtures("unverified_asyncssh")
async def test_without_the_fast_path_reading_pauses(sshd: Sshd, login: Login) -> None:
    """If asyncssh manages the window, unread bytes in the channel are bounded by `READ_AHEAD_BYTES`."""
    total = 4 << 20
    async with connected_pair(sshd, login) as pair, asyncio.timeout(20):
        pair.writer.write(bytes(total))
        pair.writer.write_eof()
        await until(lambda: pair.ours._received.size >= READ_AHEAD_BYTES)
        pair.connection._peer.exposed = False
        sshd.connection.send_debug(EXPOSED_MESSAGE)  # comes after everything that the window allows
        await until(lambda: pair.connection.exposed)
        assert pair.ours._received.size <= READ_AHEAD_BYTES + 32768
        assert len(await read_all(pair.ours)) == total


async def test_a_window_that_cannot_be_opened_now_is_opened_by_asyncssh(sshd: Sshd, login: Login) -> None:
    """During a key exchange asyncssh defers the WINDOW_ADJUST; after the agent's EOF none is sent."""
    async with connected_pair(sshd, login) as pair, asyncio.timeout(10):
        chan = pair.ours._ssh
        assert chan is not None
        conn = pair.connection._conn
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conn, "_kex_complete", False)
            open_window(chan, 1000)
            assert len(conn._deferred_packets) == 1
        assert chan._recv_window == INITIAL_WINDOW_BYTES + 1000
        conn._send_deferred_packets()
        await until(lambda: sshd.connection._channels and _send_window(sshd) == INITIAL_WINDOW_BYTES + 1000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chan, "_recv_state", "eof")
            open_window(chan, 1000)
        assert chan._recv_window == INITIAL_WINDOW_BYTES + 1000


def _send_window(sshd: Sshd) -> int:
    (channel,) = sshd.connection._channels.values()
    return int(channel._send_window)


async def test_a_writer_waits_for_the_agents_window(sshd: Sshd, login: Login) -> None:
    """A write waits while the agent's window is closed, and continues when it opens."""
    async with connected_pair(sshd, login, window=1 << 17) as pair, asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        pair.reader.channel.pause_reading()
        writing = tasks.create_task(write_pieces(pair.ours, 32))
        await until(lambda: not pair.ours._send_window_open.is_set())
        assert not writing.done()

        pair.reader.channel.resume_reading()
        assert len(await pair.reader.readexactly(32 * len(PIECE))) == 32 * len(PIECE)


async def write_pieces(channel: ForwardedChannel, count: int) -> None:
    """Write this many pieces."""
    for _ in range(count):
        await channel.write(PIECE)


async def test_a_huge_window_that_is_not_read_fills_no_memory(sshd: Sshd, login: Login) -> None:
    """With a window of 2 GiB, a writer waits for the socket, so that unsent bytes are bounded."""
    async with connected_pair(sshd, login, window=HUGE) as pair, asyncio.timeout(20):
        transport = sshd.connection._transport
        transport.pause_reading()
        try:
            async with asyncio.TaskGroup() as tasks:
                written: list[int] = []
                writing = tasks.create_task(write_for_ever(pair, written))
                await stalls(lambda: len(written))
                writing.cancel()
        finally:
            transport.resume_reading()

    assert written


async def write_for_ever(pair: Pair, written: list[int]) -> None:
    """Write, and check at each step that unsent bytes are bounded."""
    while True:
        await pair.ours.write(PIECE)
        written.append(len(PIECE))
        assert pair.buffered <= MAX_UNSENT_BYTES + 2 * len(PIECE)


async def stalls(progress: Callable[[], int], polls: int = 20) -> None:
    """Wait until a value has not changed for this many polls, which come after what the writers wait for."""
    last, unchanged = progress(), 0

    def has_stalled() -> bool:
        nonlocal last, unchanged
        unchanged = unchanged + 1 if progress() == last else 0
        last = progress()
        return unchanged >= polls

    await until(has_stalled)


async def test_many_writers_share_the_bound(sshd: Sshd, login: Login) -> None:
    """Unsent bytes are bounded per connection; each writer may exceed the bound by one piece."""
    endpoint = Endpoint("127.0.0.1", free_port())
    connection = await dial(sshd.spec(), login)
    owner = Accepting()
    try:
        await connection.listen(endpoint, owner)
        for _ in range(8):
            await sshd.connection.open_connection(endpoint.host, endpoint.port, window=HUGE)
        opened = [await owner.opened.get() for _ in range(8)]
        sshd.connection._transport.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            writing = [tasks.create_task(write_pieces(channel, 10_000)) for channel in opened]
            await stalls(lambda: connection._transport.bytes_written)
            assert not any(task.done() for task in writing)
            for task in writing:
                task.cancel()

        assert connection._conn._transport.get_write_buffer_size() <= MAX_UNSENT_BYTES + 9 * (len(PIECE) + 1024)
    finally:
        sshd.connection._transport.resume_reading()
        connection.abort()
        await connection._conn.wait_closed()


async def test_a_key_exchange_that_never_ends_fills_no_memory(sshd: Sshd, login: Login) -> None:
    """During a key exchange that never ends, writers wait, so that asyncssh defers only a piece."""
    async with connected_pair(sshd, login, window=HUGE) as pair, asyncio.timeout(20):
        sshd.connection._send_kexinit()
        sshd.connection._transport.pause_reading()
        conn = pair.connection._conn
        await until(lambda: not conn._kex_complete)
        async with asyncio.TaskGroup() as tasks:
            written: list[int] = []
            writing = tasks.create_task(write_for_ever(pair, written))
            await until(lambda: pair.connection._transport.exchanging_keys)
            await stalls(lambda: len(written))
            writing.cancel()

        held = sum(len(part) for _, parts in conn._deferred_packets for part in parts)
        sshd.connection._transport.resume_reading()
        assert held <= 2 * len(PIECE)


async def test_key_exchanges_that_end_lose_nothing(
    key: asyncssh.SSHKey, host_key: asyncssh.SSHKey, login: Login
) -> None:
    """A key exchange per mebibyte during transfers in both directions loses nothing."""
    size = 8 << 20
    async with (
        running_sshd(Sshd(host_key, key), rekey_bytes=1 << 20) as sshd,
        connected_pair(sshd, login) as pair,
        asyncio.timeout(20),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(write_pieces(pair.ours, size // len(PIECE)))
        pair.writer.write(bytes(size))
        pair.writer.write_eof()
        reading = tasks.create_task(read_all(pair.ours))
        assert len(await pair.reader.readexactly(size)) == size
        assert len(await reading) == size
