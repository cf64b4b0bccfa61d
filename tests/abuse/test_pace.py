"""The line that gives asyncssh no more than the fair queue and the no-op budget allow."""

import asyncio
from dataclasses import replace

import pytest

from tests.abuse.lab import tell
from tests.ssh.ssh_server import Sshd, generate, running_sshd, running_tcp_server, until
from tunnelmgr.dataplane import paced_reader
from tunnelmgr.dataplane.fair_queue import NO_OP_BURST
from tunnelmgr.dataplane.fast_path import OPAQUE_PIECE_BYTES
from tunnelmgr.dataplane.paced_reader import MAX_READ_BYTES, MIN_READ_BYTES
from tunnelmgr.dataplane.transport import SshTransport
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.client import dial
from tunnelmgr.ssh.dialer import Dialer
from tunnelmgr.ssh.host_key_scan import scan_host_key
from tunnelmgr.ssh.login import Login

# --- the line ---


class Slow(asyncio.Protocol):
    """Stands in asyncssh's place, and takes its time for every byte."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.pieces: list[int] = []
        self.lost = False

    def data_received(self, data: bytes) -> None:
        """Note the piece, and work."""
        self.pieces.append(len(data))
        for _ in range(len(data) * self.turns):
            pass

    def eof_received(self) -> None:
        """Take note of nothing."""

    def connection_lost(self, _exc: Exception | None) -> None:
        """Note the end."""
        self.lost = True


async def received(turns: int, total: int) -> tuple[Slow, SshTransport]:
    """Let a line receive so much for a protocol that is slow; return both."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(total))
        await writer.drain()

    made = Slow(turns)
    async with running_tcp_server(talk) as endpoint:
        transport, _ = await Dialer(["127.0.0.1"]).create_connection(lambda: made, "", endpoint.port)
        assert isinstance(transport, SshTransport)
        await until(lambda: sum(made.pieces) == total and made.lost, 30)
    return made, transport


async def test_cheap_bytes_are_received_in_large_pieces() -> None:
    """Bulk data costs few system calls; a protocol whose packets cannot be told apart gets little of it at a time."""
    made, transport = await received(turns=0, total=4 << 20)

    assert transport.reader._read_bytes == MAX_READ_BYTES
    assert max(made.pieces) == OPAQUE_PIECE_BYTES


async def test_dear_bytes_come_in_small_pieces() -> None:
    """Thousands of messages in one read are many turns of the loop, and the last of them comes through too."""
    made, _ = await received(turns=500, total=24 << 10)

    assert max(made.pieces) <= 2 * MIN_READ_BYTES
    assert sum(made.pieces) == 24 << 10


async def test_a_line_that_is_lost_passes_nothing_on() -> None:
    """Nothing is passed to a protocol that has been told of the end."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(64 << 10))
        await asyncio.Event().wait()

    made = Slow(turns=500)
    async with running_tcp_server(talk) as endpoint:
        transport, _ = await Dialer(["127.0.0.1"]).create_connection(lambda: made, "", endpoint.port)
        await until(lambda: made.pieces)
        transport.abort()
        await until(lambda: made.lost)
        passed_on = len(made.pieces)
        await asyncio.sleep(0.05)
        assert len(made.pieces) == passed_on


async def test_nothing_is_read_while_answers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks and does not read the answers is not read; who reads them again is."""
    monkeypatch.setattr(paced_reader, "MAX_UNREAD_ANSWER_BYTES", 64 * 1024)
    reading = asyncio.Event()

    class Answering(asyncio.Protocol):
        transport: asyncio.Transport
        asked = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.asked += len(data)
            self.transport.write(data * 100)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(1 << 20))
        await reading.wait()
        while await reader.read(1 << 20):
            pass

    made = Answering()
    async with running_tcp_server(ask) as endpoint:
        dialer = Dialer(["127.0.0.1"])
        transport, _ = await dialer.create_connection(lambda: made, "", endpoint.port)
        await until(lambda: transport.get_write_buffer_size() > 64 * 1024)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_all_asked(made), 0.3)
        assert transport.get_write_buffer_size() <= 64 * 1024 + 100 * MAX_READ_BYTES

        reading.set()
        await asyncio.wait_for(_all_asked(made), 30)
        transport.abort()


async def _all_asked(made: object) -> None:
    await until(lambda: made.asked == 1 << 20, 60)  # type: ignore[attr-defined]


async def test_the_line_is_overdrawn_while_it_rests_and_a_moment_longer() -> None:
    """The worker tells by it an agent that floods, also in its turn between two rests, from one that is dead."""
    made = Slow(turns=0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"once more")
        await asyncio.Event().wait()

    async with running_tcp_server(talk) as endpoint:
        transport, _ = await Dialer(["127.0.0.1"]).create_connection(lambda: made, "", endpoint.port)
        assert isinstance(transport, SshTransport)
        assert not transport.reader.throttled
        transport.reader._budget.spend(NO_OP_BURST + 0.005)
        transport.reader._schedule_next()
        assert transport.reader.throttled
        transport.write(b"x")
        await asyncio.sleep(0.01)
        assert made.pieces == []
        await until(lambda: made.pieces, 2)
        assert transport.reader.throttled
        await until(lambda: not transport.reader.throttled, 2)
        transport.abort()


# --- the handshake ---


@pytest.mark.parametrize("said", [b"SSH-2.0-slow", b"hello, ", b""], ids=["version", "banner", "silence"])
async def test_a_byte_at_a_time_costs_one_timeout(said: bytes) -> None:
    """The deadline is for the whole way in; a byte now and then does not move it."""

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(10_000):
            for byte in said:
                if writer.is_closing():
                    return
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)

    clock = asyncio.get_running_loop().time
    key, sshd = generate(), Sshd(generate(), generate())
    async with running_tcp_server(drip) as endpoint:
        begun = clock()
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(port=endpoint.port), Login("tunnel", key, 0.5))
        with pytest.raises(UnreachableError):
            await scan_host_key(replace(sshd.agent(), port=endpoint.port), 0.5)

    tell(f"one byte in 20 ms ({said!r}): given up twice in {clock() - begun:.2f} s at 0.5 s each")
    assert clock() - begun < 2


async def test_key_exchanges_that_take_long_are_not_offered() -> None:
    """A server that has only those of 2,048 to 8,192 bits is not reached; it could ask for one again and again."""
    key = generate()
    for name in ("diffie-hellman-group18-sha512", "diffie-hellman-group-exchange-sha256", "curve448-sha512"):
        async with running_sshd(Sshd(generate(), key), kex_algs=[name]) as sshd:
            with pytest.raises(UnreachableError, match="No matching key exchange"):
                await dial(sshd.spec(), Login("tunnel", key, 5.0))
    for name in ("curve25519-sha256", "ecdh-sha2-nistp256", "ecdh-sha2-nistp521"):
        async with running_sshd(Sshd(generate(), key), kex_algs=[name]) as sshd:
            (await dial(sshd.spec(), Login("tunnel", key, 5.0))).abort()
