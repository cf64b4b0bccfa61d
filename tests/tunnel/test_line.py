"""The TCP connection under an SSH connection: back-pressure, and addresses in order."""

import asyncio
from contextlib import suppress

import pytest

from tests.tunnel.ssh_server import free_port, tcp_at_work, until
from tunnelmgr.errors import UnreachableError
from tunnelmgr.tunnel.line import SEND_AHEAD, Dialer, Line


class Recording(asyncio.Protocol):
    """Writes down what reaches asyncssh's place."""

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


async def test_everything_is_passed_on_in_order() -> None:
    """What is above hears what it would hear without us."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")

    async with tcp_at_work(talk) as endpoint:
        dialer = Dialer(["127.0.0.1"])
        _, protocol = await dialer.create_connection(Recording, "", endpoint.port)
        assert isinstance(protocol, Recording)
        await until(lambda: ("lost", None) in protocol.calls)

    assert protocol.calls == ["made", b"hello", "eof", ("lost", None)]
    assert dialer.reached == "127.0.0.1"


async def test_a_writer_is_held_while_the_socket_takes_nothing() -> None:
    """It waits at the bound, and goes on when the other side reads."""
    reading = asyncio.Event()

    async def read_late(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        with suppress(ConnectionError):
            while await reader.read(1 << 20):
                pass

    async with tcp_at_work(read_late) as endpoint:
        dialer = Dialer(["127.0.0.1"])
        _, protocol = await dialer.create_connection(Recording, "", endpoint.port)
        assert isinstance(protocol, Recording)
        line, transport = dialer.line, protocol.transport
        assert line is not None
        assert transport is not None

        while line._room.is_set():
            transport.write(bytes(1 << 16))
            await line_turn()
        assert SEND_AHEAD < transport.get_write_buffer_size() <= SEND_AHEAD + (1 << 16)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(line.writable(), 0.05)

        reading.set()
        await asyncio.wait_for(line.writable(), 5)
        transport.abort()
        await until(lambda: ("lost", None) in protocol.calls)


async def line_turn() -> None:
    """Let the loop turn once, so that the socket takes what it can."""
    await asyncio.sleep(0)


async def test_a_lost_line_holds_nobody() -> None:
    """Whoever waits is let go and finds its channel closed."""
    line = Line(Recording())
    line.pause_writing()
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        waiting = tasks.create_task(line.writable())
        await line_turn()
        assert not waiting.done()
        line.connection_lost(None)


async def test_a_line_that_is_lost_within_a_key_exchange_holds_nobody() -> None:
    """The exchange will never end, and so must the wait for it not depend on it."""
    protocol = Recording()
    protocol._kex_complete = False  # type: ignore[attr-defined]
    line = Line(protocol)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        waiting = tasks.create_task(line.writable())
        await line_turn()
        assert not waiting.done()
        line.connection_lost(None)


async def test_the_protocol_is_made_once_and_for_the_address_that_answers() -> None:
    """An address that refuses leaves no half-made connection of asyncssh's behind."""
    made: list[Recording] = []

    def make() -> Recording:
        made.append(Recording())
        return made[-1]

    async def stay(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with tcp_at_work(stay) as endpoint:
        dialer = Dialer(["127.0.0.9", "127.0.0.1"])
        transport, _ = await dialer.create_connection(make, "", endpoint.port)
        transport.abort()
        await until(lambda: made and ("lost", None) in made[0].calls)

    assert len(made) == 1
    assert dialer.reached == "127.0.0.1"


async def test_no_address_at_all_is_unreachable() -> None:
    """It is our error, like any address that refuses."""
    with pytest.raises(UnreachableError, match="no address"):
        await Dialer([]).create_connection(Recording, "", 22)
    with pytest.raises(UnreachableError, match="refused"):
        await Dialer(["127.0.0.1"]).create_connection(Recording, "", free_port())
