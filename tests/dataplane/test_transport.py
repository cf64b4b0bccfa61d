"""The TCP connection under an SSH connection: back-pressure, and addresses in order."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.ssh.ssh_server import free_port, running_tcp_server, until
from tunnelmgr.dataplane.batches import BATCHES_PER_READ, take_batch
from tunnelmgr.dataplane.fair_queue import HARD_LIMIT, SLICE, Share, fair_queue
from tunnelmgr.dataplane.fast_path import OPAQUE_PIECE_BYTES
from tunnelmgr.dataplane.paced_reader import MAX_READ_BYTES
from tunnelmgr.dataplane.transport import MAX_UNSENT_BYTES, SshTransport
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.dialer import Dialer


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


class Conversing(asyncio.Protocol):
    """Answers whatever comes, and notes whether it was acknowledged at once."""

    def __init__(self) -> None:
        self.quick: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - asyncio's form
        """Look, and answer."""
        connected = self._transport.get_extra_info("socket")
        self.quick.append(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))
        self._transport.write(b"said")

    def eof_received(self) -> bool:
        """Let it end."""
        return False


@contextmanager
def unread(make: Callable[[], asyncio.Protocol]) -> Iterator[tuple[SshTransport, socket.socket]]:
    """Return a line that reads only when the test has it read, and the socket at its other end."""
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


async def test_everything_is_passed_on_in_order() -> None:
    """What is above hears what it would hear without us."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")

    async with running_tcp_server(talk) as endpoint:
        dialer = Dialer(["127.0.0.1"])
        _, protocol = await dialer.create_connection(Recording, "", endpoint.port)
        assert isinstance(protocol, Recording)
        await until(lambda: ("lost", None) in protocol.calls)

    assert protocol.calls == ["made", b"hello", "eof", ("lost", None)]
    assert dialer.reached == "127.0.0.1"


async def test_what_arrives_is_acknowledged_at_once_until_the_other_side_is_quickened() -> None:
    """A kernel in conversation puts its ACKs off, and Nagle's algorithm at the other end puts its data off until then.

    TCP_QUICKACK reads as 1 while the kernel is not in conversation (`tcp(7)`).
    """

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"say")
            await reader.readexactly(len(b"said"))

    async with running_tcp_server(talk) as endpoint:
        dialer = Dialer(["127.0.0.1"])
        _, protocol = await dialer.create_connection(Conversing, "", endpoint.port)
        assert isinstance(protocol, Conversing)
        await until(lambda: len(protocol.quick) > 20)
        assert set(protocol.quick[10:]) == {1}

        assert dialer.transport is not None
        dialer.transport.reader.acknowledge_at_once = False
        protocol.quick.clear()
        await until(lambda: len(protocol.quick) > 20)
        assert 0 in protocol.quick
        dialer.transport.abort()


async def test_an_answer_goes_out_with_what_it_answers() -> None:
    """An answer is sent at the end of the step that caused it; other data waits for the next iteration of the loop."""
    with unread(Conversing) as (transport, other):
        await arrive(transport, other, b"say")
        transport.reader._on_readable()
        assert transport.get_write_buffer_size() == 0
        assert other.recv(100) == b"said"

        assert isinstance(transport.protocol, Conversing)
        transport.protocol.data_received(b"said later")
        assert transport.get_write_buffer_size() == len(b"said")
        await until(lambda: transport.get_write_buffer_size() == 0)


async def test_while_batches_go_out_window_adjusts_are_read_some_at_a_time() -> None:
    """What arrives meanwhile waits for four batches at most, and for none once they stop."""

    def heard() -> int:
        assert isinstance(transport.protocol, Recording)
        return len(transport.protocol.calls)

    with unread(Recording) as (transport, other):
        await arrive(transport, other, b"adjust")
        for _ in range(BATCHES_PER_READ - 1):
            transport.bulk.send(take_batch(), 8)
            transport.reader._on_readable()
        assert heard() == 1
        transport.bulk.send(take_batch(), 8)
        transport.reader._on_readable()
        assert heard() == 2

        await arrive(transport, other, b"adjust")
        transport.bulk.send(take_batch(), 8)
        transport.reader._on_readable()
        assert heard() == 2
        transport.reader._on_readable()
        assert heard() == 3


class Costly(asyncio.Protocol):
    """Uses up the slice for each message of `OPAQUE_PIECE_BYTES` bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def data_received(self, data: bytes) -> None:
        """Work for longer than a slice."""
        self.sizes.append(len(data))
        began = time.thread_time()
        while time.thread_time() - began < SLICE:
            pass


async def test_a_piece_that_takes_too_long_goes_on_in_later_steps() -> None:
    """A large piece of costly messages is processed bit by bit, in order and to its end, with others in between."""
    with unread(Costly) as (transport, other):
        transport.reader._read_bytes = MAX_READ_BYTES
        await arrive(transport, other, bytes(10 * OPAQUE_PIECE_BYTES))
        assert isinstance(transport.protocol, Costly)

        transport.reader._on_readable()
        first = list(transport.protocol.sizes)
        iterations = 0
        while sum(transport.protocol.sizes) < 10 * OPAQUE_PIECE_BYTES:
            iterations += 1
            await asyncio.sleep(0)

        assert first == [OPAQUE_PIECE_BYTES]
        assert transport.protocol.sizes == [OPAQUE_PIECE_BYTES] * 10
        assert iterations >= 9


async def test_a_connection_whose_turn_has_not_come_is_not_polled() -> None:
    """While a step waits in the queue, the loop does not report the same bytes in every iteration."""
    with unread(Recording) as (transport, other):
        share = Share(fair_queue(asyncio.get_running_loop()))
        await arrive(transport, other, b"hello")
        share.run(lambda: _use_up(2 * HARD_LIMIT))
        transport.reader._on_readable()
        assert isinstance(transport.protocol, Recording)
        assert transport.protocol.calls == ["made"]

        transport.reader._on_readable()
        assert transport._stream._reader is None

        await until(lambda: b"hello" in transport.protocol.calls)
        assert transport._stream._reader is not None


async def test_a_step_that_finds_its_line_ended_does_nothing() -> None:
    """A line may end while its step waits for its turn."""
    with unread(Recording) as (transport, other):
        await arrive(transport, other, b"hello")
        Share(fair_queue(asyncio.get_running_loop())).run(lambda: _use_up(2 * HARD_LIMIT))
        transport.reader._on_readable()
        transport.abort()

        await until(lambda: len(transport.protocol.calls) > 1)
        assert transport.protocol.calls == ["made", ("lost", None)]


def _use_up(seconds: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


async def test_a_reset_is_passed_on_with_its_reason() -> None:
    """Whether it is found by reading or by writing, and once."""

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    for write in (b"", b"x"):
        async with running_tcp_server(reset) as endpoint:
            transport, protocol = await dialled(endpoint.port)
            await asyncio.sleep(0.01)
            if write:
                transport.write(write)
            await until(lambda heard=protocol.calls: len(heard) > 1)
            transport.abort()
            transport.write(b"into nothing")
            await loop_iteration()
        (lost,) = protocol.calls[1:]
        assert isinstance(lost, tuple)
        assert isinstance(lost[1], ConnectionError)
        assert transport.is_closing()


async def test_what_is_written_in_one_turn_goes_out_together() -> None:
    """It sends an IGNORE before each message, and each with a call of its own."""
    arrived: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read(100))

    async with running_tcp_server(listen) as endpoint:
        transport, _ = await dialled(endpoint.port)
        for word in (b"one ", b"two ", b"three"):
            transport.write(word)
        await until(lambda: arrived)
        transport.abort()

    assert arrived == [b"one two three"]


async def test_an_abort_still_sends_what_was_put_off() -> None:
    """The SSH side says why it goes, and goes."""
    arrived: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read())

    async with running_tcp_server(listen) as endpoint:
        transport, protocol = await dialled(endpoint.port)
        transport.write(b"goodbye")
        transport.abort()
        await until(lambda: arrived)

    assert arrived == [b"goodbye"]
    assert protocol.calls == ["made", ("lost", None)]


async def dialled(port: int) -> tuple[SshTransport, Recording]:
    """Return a transport, and what is above it."""
    transport, protocol = await Dialer(["127.0.0.1"]).create_connection(Recording, "", port)
    assert isinstance(transport, SshTransport)
    assert isinstance(protocol, Recording)
    return transport, protocol


async def test_a_writer_is_held_while_the_socket_takes_nothing() -> None:
    """It waits at the bound, and goes on when the other side reads."""
    reading = asyncio.Event()

    async def read_late(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        with suppress(ConnectionError):
            while await reader.read(1 << 20):
                pass

    async with running_tcp_server(read_late) as endpoint:
        transport, protocol = await dialled(endpoint.port)
        transport.write(bytes(64 << 20))
        await loop_iteration()
        assert transport.get_write_buffer_size() > MAX_UNSENT_BYTES
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(transport.writable(), 0.05)
        assert not transport.bulk.idle()

        reading.set()
        await asyncio.wait_for(transport.writable(), 5)
        await until(transport.bulk.idle)
        transport.abort()
        await until(lambda: ("lost", None) in protocol.calls)


async def loop_iteration() -> None:
    """Let the loop turn once, so that the socket takes what it can."""
    await asyncio.sleep(0)


async def test_a_lost_line_holds_nobody() -> None:
    """Whoever waits is let go and finds its channel closed, also within a key exchange that will never end."""

    async def stay(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await asyncio.Event().wait()

    async with running_tcp_server(stay) as endpoint:
        full, _ = await dialled(endpoint.port)
        exchanging, _ = await dialled(endpoint.port)
        full.write(bytes(64 << 20))
        exchanging.expect(exchanging.bytes_written, 1)  # and it will never be written
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            waiting = [tasks.create_task(transport.writable()) for transport in (full, exchanging)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting)
            full.abort()
            exchanging.abort()


async def test_a_batch_is_used_again_once_its_last_byte_is_sent() -> None:
    """And not before: what the kernel has not taken is still in it."""
    reading = asyncio.Event()
    got = bytearray()

    async def read_late(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        while data := await reader.read(1 << 20):
            got.extend(data)

    sent = bytearray()
    async with running_tcp_server(read_late) as endpoint:
        transport, _ = await dialled(endpoint.port)
        while transport.bulk.idle():
            batch = take_batch()
            batch.buffer[:] = bytes([len(sent) % 251]) * len(batch.buffer)
            transport.bulk.send(batch, len(batch.buffer))
            sent += batch.buffer
        other = take_batch()
        assert other is not batch
        other.buffer[:] = bytes(len(other.buffer))
        reading.set()
        await until(transport.bulk.idle)
        assert take_batch() in {batch, other}
        await until(lambda: len(got) == len(sent))
        transport.abort()

    assert got == sent


async def test_the_protocol_is_made_once_and_for_the_address_that_answers() -> None:
    """An address that refuses leaves no half-made connection of asyncssh's behind."""
    made: list[Recording] = []

    def make() -> Recording:
        made.append(Recording())
        return made[-1]

    async def stay(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with running_tcp_server(stay) as endpoint:
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
