"""The reader that gives asyncssh no more bytes than the fair queue and the no-op budget allow."""

import asyncio
from dataclasses import replace

import pytest

from tests.ssh.ssh_server import Sshd, generate, running_sshd, running_tcp_server
from tests.until import until
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

# --- the reader ---


class SlowProtocol(asyncio.Protocol):
    """Acts as asyncssh, and works for a while on every byte."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.pieces: list[int] = []
        self.read_sizes: list[int] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, SshTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep the piece's size and that of the read, and work."""
        self.pieces.append(len(data))
        self.read_sizes.append(self.transport.reader._read_bytes)
        for _ in range(len(data) * self.turns):
            pass

    def eof_received(self) -> None:
        """Do nothing."""

    def connection_lost(self, _exc: Exception | None) -> None:
        """Record the end of the connection."""
        self.lost = True


async def receive(turns: int, total: int) -> tuple[SlowProtocol, SshTransport]:
    """Let a transport receive `total` bytes for a slow protocol; return both."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(total))
        await writer.drain()

    made = SlowProtocol(turns)
    async with running_tcp_server(talk) as endpoint:
        transport, _ = await Dialer(["127.0.0.1"]).create_connection(lambda: made, "", endpoint.port)
        assert isinstance(transport, SshTransport)
        await until(lambda: sum(made.pieces) == total and made.lost, 30)
    return made, transport


async def test_cheap_bytes_are_received_in_large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that cost little are read in large pieces, and a protocol with unknown packets gets them in small ones."""
    monkeypatch.setattr(paced_reader, "FAST_READ_SECONDS", 1e9)  # every read counts as cheap

    made, _ = await receive(turns=0, total=4 << 20)

    assert max(made.read_sizes) == MAX_READ_BYTES
    assert max(made.pieces) == OPAQUE_PIECE_BYTES


async def test_expensive_bytes_are_read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that cost much are read in small pieces, and all of them arrive."""
    monkeypatch.setattr(paced_reader, "FAST_READ_SECONDS", 0.0)  # every read counts as expensive
    monkeypatch.setattr(paced_reader, "SLOW_READ_SECONDS", 1e-9)

    made, _ = await receive(turns=0, total=24 << 10)

    assert max(made.pieces) <= MIN_READ_BYTES
    assert sum(made.pieces) == 24 << 10


async def test_a_lost_transport_delivers_no_more_bytes() -> None:
    """A protocol that has been notified of the end gets no more bytes."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(64 << 10))
        await asyncio.Event().wait()

    made = SlowProtocol(turns=500)
    async with running_tcp_server(talk) as endpoint:
        transport, _ = await Dialer(["127.0.0.1"]).create_connection(lambda: made, "", endpoint.port)
        await until(lambda: made.pieces)
        transport.abort()
        await until(lambda: made.lost)
        delivered = len(made.pieces)
        await receive(turns=0, total=64 << 10)  # as much as is left on the lost transport

    assert len(made.pieces) == delivered


async def test_nothing_is_read_while_responses_are_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that does not read its responses is not read, and is read again once it does."""
    monkeypatch.setattr(paced_reader, "MAX_UNREAD_ANSWER_BYTES", 64 * 1024)
    reading = asyncio.Event()

    class Responding(asyncio.Protocol):
        transport: asyncio.Transport
        received = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.received += len(data)
            self.transport.write(data * 100)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(1 << 20))
        await reading.wait()
        while await reader.read(1 << 20):
            pass

    made = Responding()
    async with running_tcp_server(ask) as endpoint:
        dialer = Dialer(["127.0.0.1"])
        transport, _ = await dialer.create_connection(lambda: made, "", endpoint.port)
        await until(lambda: transport.get_write_buffer_size() > 64 * 1024)
        received = made.received
        for _ in range(1000):
            await asyncio.sleep(0)
        assert made.received == received < 1 << 20
        assert transport.get_write_buffer_size() <= 64 * 1024 + 100 * MAX_READ_BYTES

        reading.set()
        await asyncio.wait_for(_all_received(made), 30)
        transport.abort()


async def _all_received(made: object) -> None:
    await until(lambda: made.received == 1 << 20, 60)  # type: ignore[attr-defined]


async def test_the_reader_is_throttled_during_a_pause_and_shortly_after() -> None:
    """A reader over its budget is throttled, also between two pauses, so its agent does not count as dead."""
    made, sent = SlowProtocol(turns=0), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"once more")
        await writer.drain()
        sent.set()
        await asyncio.Event().wait()

    async with running_tcp_server(talk) as endpoint:
        transport, _ = await Dialer(["127.0.0.1"]).create_connection(lambda: made, "", endpoint.port)
        assert isinstance(transport, SshTransport)
        assert not transport.reader.throttled
        transport.reader._budget.spend(NO_OP_BURST + 0.005)
        transport.reader._schedule_next()
        assert transport.reader.throttled
        transport.write(b"x")
        await sent.wait()
        assert made.pieces == []
        await until(lambda: made.pieces, 2)
        assert transport.reader.throttled
        await until(lambda: not transport.reader.throttled, 2)
        transport.abort()


# --- the handshake ---


@pytest.mark.parametrize("start", [b"SSH-2.0-slow", b"hello, ", b""], ids=["version", "banner", "silence"])
async def test_a_byte_at_a_time_does_not_extend_the_connect_timeout(start: bytes) -> None:
    """A server that sends one byte now and then does not extend the timeout for the handshake."""

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(10_000):
            for byte in start:
                if writer.is_closing():
                    return
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)  # the drip is what is tested
            await asyncio.sleep(0.02)

    key, sshd = generate(), Sshd(generate(), generate())
    async with running_tcp_server(drip) as endpoint, asyncio.timeout(20):
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(port=endpoint.port), Login("tunnel", key, 0.5))
        with pytest.raises(UnreachableError):
            await scan_host_key(replace(sshd.agent(), port=endpoint.port), 0.5)


async def test_expensive_key_exchanges_are_not_offered() -> None:
    """A server with only expensive key exchanges, which it could repeat at will, is unreachable."""
    key = generate()
    for name in ("diffie-hellman-group18-sha512", "diffie-hellman-group-exchange-sha256", "curve448-sha512"):
        async with running_sshd(Sshd(generate(), key), kex_algs=[name]) as sshd:
            with pytest.raises(UnreachableError, match="No matching key exchange"):
                await dial(sshd.spec(), Login("tunnel", key, 5.0))
    for name in ("curve25519-sha256", "ecdh-sha2-nistp256", "ecdh-sha2-nistp521"):
        async with running_sshd(Sshd(generate(), key), kex_algs=[name]) as sshd:
            (await dial(sshd.spec(), Login("tunnel", key, 5.0))).abort()
