"""Bulk data past asyncssh: byte for byte what was written, whatever the agent's windows, packets and key exchanges."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import asyncssh
import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tunnel.ssh_server import Sshd, free_port, generate, sshd_at_work, until
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.tunnel import channel, fastpath
from tunnelmgr.tunnel.channel import ForwardedChannel
from tunnelmgr.tunnel.fastpath import BATCH, LARGEST, PROVED, SMALLEST, await_window, send_bulk
from tunnelmgr.tunnel.keys import Login
from tunnelmgr.tunnel.ssh import SshConnection, dial

KIB, MIB = 1024, 1024 * 1024
CONTENT = random.Random(5).randbytes(4 * MIB)  # noqa: S311 - any bytes that repeat nowhere
KEY, HOST_KEY = generate(), generate()


@dataclass
class Both:
    """Both ends of a channel, and what our end sent in bulk."""

    ours: ForwardedChannel
    reader: asyncssh.SSHReader[bytes]
    writer: asyncssh.SSHWriter[bytes]
    connection: SshConnection
    server: asyncssh.SSHServerConnection
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


@asynccontextmanager
async def opened(window: int = 2 * MIB, packet: int = LARGEST, **options: object) -> AsyncIterator[Both]:
    """Open a channel with this window and packet size of the agent's; the server takes more options."""
    async with sshd_at_work(Sshd(HOST_KEY, KEY), **options) as sshd:
        connection = await dial(sshd.spec(), Login("tunnel", KEY, 5.0))
        arrived: asyncio.Queue[ForwardedChannel] = asyncio.Queue()
        endpoint = Endpoint("127.0.0.1", free_port())
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
            connection.abort()
            await connection._conn.wait_closed()


@contextmanager
def counted(both: Both) -> Iterator[None]:
    """Count what goes out in bulk."""

    def counting(chan: asyncssh.SSHTCPChannel[bytes], data: memoryview) -> int:
        sent = send_bulk(chan, data)
        both.bulk.append(sent)
        return sent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel, "send_bulk", counting)
        yield


async def send_all(ours: ForwardedChannel, *pieces: bytes) -> None:
    """Write the pieces, and the end."""
    for piece in pieces:
        await ours.write(piece)
    ours.write_eof()


async def carried(both: Both, *pieces: bytes) -> bytes:
    """Send the pieces while the agent reads; returns what it read."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send_all(both.ours, *pieces), name="send")
        reading = tasks.create_task(both.reader.read(), name="read")
    return reading.result()


# --- the contract with asyncssh ---


def test_this_release_of_asyncssh_is_proved() -> None:
    """A new one is added to `PROVED` once all of this file passes with it."""
    assert asyncssh.__version__ in PROVED


async def test_every_private_attribute_is_there_with_its_type() -> None:
    """What `fastpath` reads and writes means what it assumes."""
    async with opened() as both:
        conn, chan = both.conn, both.chan
        assert type(conn._send_encryption) is GCMEncryption
        assert type(conn._send_encryption._cipher) is GCMCipher
        assert [type(value) for value in (conn._send_encryption._cipher._key, conn._send_encryption._cipher._iv)] == [
            bytes,
            bytes,
        ]
        assert len(conn._send_encryption._cipher._iv) == 12
        assert (conn._auth_complete, conn._kex_complete, conn._deferred_packets) == (True, True, [])
        assert conn._compressor is None
        for counter in (conn._send_seq, conn._rekey_bytes_sent, conn._rekey_bytes, chan._send_window, chan._send_chan):
            assert type(counter) is int
        assert type(conn._rekey_seconds) in {int, float}
        assert type(conn._rekey_time) is float
        assert (chan._send_state, chan._send_buf, chan._encoding, chan._send_paused) == ("open", [], None, False)
        assert chan._conn is conn
        assert (conn._send_enchdrlen, conn._send_blocksize) == (1, 16)


async def test_a_batch_leaves_the_connection_as_asyncssh_itself_would() -> None:
    """Counter, sequence number, window, and bytes towards the next key exchange move by the same steps."""
    async with opened() as both:

        def state() -> tuple[int, int, int, int]:
            cipher = both.conn._send_encryption._cipher
            counts = int.from_bytes(cipher._iv[4:], "big"), both.conn._send_seq
            return (*counts, both.conn._rekey_bytes_sent, both.chan._send_window)

        def moved(before: tuple[int, ...]) -> list[int]:
            return [now - then for now, then in zip(state(), before, strict=True)]

        before = state()
        both.chan.write(CONTENT[:LARGEST])
        by_asyncssh = moved(before)
        before = state()
        assert send_bulk(both.chan, memoryview(CONTENT[:LARGEST])) == LARGEST
        by_us = moved(before)

    ignore = [1, 1, 16, 0]  # asyncssh puts an IGNORE of one block before each packet
    assert by_us == [step - more for step, more in zip(by_asyncssh, ignore, strict=True)]


# --- byte for byte ---


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(
        st.one_of(
            st.integers(1, 3 * BATCH * LARGEST),
            st.sampled_from([1, SMALLEST - 1, SMALLEST, LARGEST - 1, LARGEST, LARGEST + 1, BATCH * LARGEST + 1]),
        ),
        min_size=1,
        max_size=6,
    ),
    window=st.one_of(st.integers(1024, 3 * MIB), st.sampled_from([SMALLEST, LARGEST, BATCH * LARGEST])),
    packet=st.one_of(st.integers(512, 64 * KIB), st.sampled_from([SMALLEST - 1, SMALLEST, LARGEST])),
)
def test_any_writes_arrive_whole_whatever_windows_and_packets_the_agent_asks_for(
    sizes: list[int], window: int, packet: int
) -> None:
    """Written in any pieces, it is read in order, each byte once, up to the end."""
    offsets = [sum(sizes[:number]) % MIB for number in range(len(sizes))]
    pieces = [CONTENT[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]

    async def run() -> bytes:
        async with opened(window, packet) as both:
            return await carried(both, *pieces)

    assert asyncio.run(run()) == b"".join(pieces)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
async def test_both_gcm_ciphers_go_in_bulk(cipher: str) -> None:
    """It is the bulk path that is tested here, not the other."""
    async with opened(encryption_algs=[cipher]) as both:
        assert await carried(both, CONTENT) == CONTENT
        assert sum(both.bulk) >= len(CONTENT) - LARGEST


async def test_another_cipher_goes_through_asyncssh() -> None:
    """Declined, and just as whole."""
    async with opened(encryption_algs=["aes128-ctr"]) as both:
        assert await carried(both, CONTENT) == CONTENT
        assert not any(both.bulk)


async def test_a_release_that_is_not_proved_goes_through_asyncssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slower, and right."""
    monkeypatch.setattr(fastpath, "_USABLE", False)

    async with opened(window=64 * KIB) as both:
        assert await carried(both, CONTENT) == CONTENT
        assert not any(both.bulk)


@pytest.mark.parametrize("side", ["ours", "the agent's"])
async def test_key_exchanges_in_mid_stream_lose_nothing(side: str) -> None:
    """Begun by either side, several of them, each with data under way; bulk goes on with the new keys."""
    limit = 300_000
    async with opened(**({} if side == "ours" else {"rekey_bytes": 100_000})) as both:
        if side == "ours":
            both.conn._rekey_bytes = limit
        ciphers = {id(both.conn._send_encryption): both.conn._send_encryption}
        pieces = [CONTENT[at : at + 100_000] for at in range(0, len(CONTENT), 100_000)]
        both.writer.write(CONTENT[:MIB])  # the agent counts what it sends itself
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_all(both.ours, *pieces), name="send")
            reading = tasks.create_task(both.reader.read(), name="read")
            got = b""
            while len(got) < MIB:
                got += await both.ours.read()
                ciphers[id(both.conn._send_encryption)] = both.conn._send_encryption

        assert reading.result() == CONTENT
        assert got == CONTENT[:MIB]
        ciphers[id(both.conn._send_encryption)] = both.conn._send_encryption
        assert len(ciphers) > 1
        assert sum(both.bulk) > len(CONTENT) // 2


# --- bounds and ends ---


async def test_an_agent_that_does_not_read_holds_the_writer_with_nothing_queued() -> None:
    """What its window has no room for stays with us unsealed, and goes out once it reads."""
    async with opened(window=256 * KIB) as both:
        both.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(send_all(both.ours, CONTENT), name="write")
            await until(lambda: not both.chan._send_window)
            assert not writing.done()
            assert both.chan.get_write_buffer_size() == 0

            both.reader.channel.resume_reading()
            assert await both.reader.read() == CONTENT


async def test_the_agents_close_ends_a_writer_that_waits_for_its_window() -> None:
    """As a reset, at once."""
    async with opened(window=64 * KIB) as both:
        both.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(refused(both.ours), name="write")
            await until(lambda: not both.chan._send_window)
            both.writer.channel.abort()
        assert writing.result()


async def refused(ours: ForwardedChannel) -> bool:
    """Write until it is refused."""
    try:
        await ours.write(CONTENT)
    except ConnectionResetError:
        return True
    return False


async def test_an_abort_of_ours_and_a_loss_of_the_connection_end_the_writer() -> None:
    """Nothing waits for ever."""
    async with opened(window=64 * KIB) as both:
        both.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(refused(both.ours), name="write")
            await until(lambda: not both.chan._send_window)
            both.connection.abort()
        assert writing.result()


async def test_a_half_closed_agent_still_gets_all() -> None:
    """Its end of input is no end of ours, and our end comes after the last byte."""
    async with opened() as both:
        both.writer.write_eof()
        assert await both.ours.read() == b""
        digest = hashlib.sha256(await carried(both, CONTENT)).digest()
        assert digest == hashlib.sha256(CONTENT).digest()


async def test_a_channel_with_room_or_with_data_queued_is_not_told_to_wait() -> None:
    """Only an empty window is waited for here; for the rest asyncssh does it."""
    async with opened(window=8 * KIB) as both:
        assert not await_window(both.chan)
        both.reader.channel.pause_reading()
        both.chan.write(CONTENT[: 16 * KIB])
        assert both.chan._send_window == 0
        assert not await_window(both.chan)


async def test_other_work_has_its_turn_between_two_batches() -> None:
    """A large write does not keep the loop for longer than a batch takes."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    done = asyncio.Event()
    async with opened(window=8 * MIB) as both, asyncio.TaskGroup() as tasks:
        tasks.create_task(count(), name="other")
        await both.ours.write(CONTENT)
        done.set()
    assert turns >= len(CONTENT) // (BATCH * LARGEST) - 1


# --- where it declines ---


@pytest.mark.parametrize(
    ("whose", "attribute", "value"),
    [
        ("conn", "_kex_complete", False),
        ("conn", "_auth_complete", False),
        ("conn", "_deferred_packets", [(94, ())]),
        ("conn", "_compressor", object()),
        ("conn", "_send_encryption", None),
        ("conn", "_rekey_bytes", 0),
        ("conn", "_rekey_seconds", 1),
        ("conn", "_transport", None),
        ("chan", "_send_state", "eof_pending"),
        ("chan", "_send_buf", [(bytearray(b"queued"), None)]),
        ("chan", "_encoding", "utf-8"),
        ("chan", "_send_window", SMALLEST - 1),
        ("chan", "_send_pktsize", SMALLEST - 1),
        ("chan", "_conn", None),
    ],
)
async def test_whatever_is_not_as_expected_is_left_to_asyncssh(whose: str, attribute: str, value: object) -> None:
    """Nothing is sent and nothing is changed."""
    async with opened() as both:
        if attribute == "_rekey_seconds":
            both.conn._rekey_time = 0.0
        before = both.conn._send_seq, both.conn._send_encryption._cipher._iv, both.chan._send_window

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(getattr(both, whose), attribute, value)
            assert send_bulk(both.chan, memoryview(CONTENT)) == 0

        assert (both.conn._send_seq, both.conn._send_encryption._cipher._iv, both.chan._send_window) == before


async def test_a_transport_that_keeps_what_it_was_given_keeps_it_unchanged() -> None:
    """Some transports queue the buffer itself, not a copy; the next batch is then made in another."""

    class Keeping:
        def __init__(self) -> None:
            self.kept: list[memoryview] = []

        def write(self, data: memoryview) -> None:
            self.kept.append(data)

        def get_write_buffer_size(self) -> int:
            return sum(map(len, self.kept))

    async with opened() as both:
        keeping = Keeping()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(both.conn, "_transport", keeping)
            send_bulk(both.chan, memoryview(CONTENT[:LARGEST]))
            first = bytes(keeping.kept[0])
            send_bulk(both.chan, memoryview(CONTENT[:LARGEST]))

        assert bytes(keeping.kept[0]) == first
        assert bytes(keeping.kept[1]) != first
