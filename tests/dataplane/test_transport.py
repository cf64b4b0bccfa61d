"""asyncssh's transport and its reader: flow control, pace, and addresses in order."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.ssh.ssh_server import free_port, running_tcp_server
from tests.until import until
from tunnelmgr.dataplane.batches import BATCHES_PER_READ, take_batch
from tunnelmgr.dataplane.fair_queue import HARD_LIMIT, SLICE, Share, fair_queue
from tunnelmgr.dataplane.fast_path import OPAQUE_PIECE_BYTES
from tunnelmgr.dataplane.paced_reader import MAX_READ_BYTES
from tunnelmgr.dataplane.transport import MAX_UNSENT_BYTES, SshTransport
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.dialer import Dialer


class Recording(asyncio.Protocol):
    """Records the calls that asyncssh's protocol would get."""

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
    """Answers everything, and records whether it was acknowledged at once."""

    def __init__(self) -> None:
        self.quick: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - asyncio's form
        """Record TCP_QUICKACK, and answer."""
        connected = self._transport.get_extra_info("socket")
        self.quick.append(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))
        self._transport.write(b"answer")

    def eof_received(self) -> bool:
        """Close the connection."""
        return False


@contextmanager
def unread(make: Callable[[], asyncio.Protocol]) -> Iterator[tuple[SshTransport, socket.socket]]:
    """Return a transport that reads only when the test calls its reader, and the socket at the other end."""
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


async def test_the_protocol_is_called_in_order() -> None:
    """The protocol gets made, data, EOF and loss in the order in which they happen."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")

    async with running_tcp_server(talk) as endpoint:
        dialer = Dialer(["127.0.0.1"])
        _, protocol = await dialer.create_connection(Recording, "", endpoint.port)
        assert isinstance(protocol, Recording)
        await until(lambda: ("lost", None) in protocol.calls)

    assert protocol.calls == ["made", b"hello", "eof", ("lost", None)]
    assert dialer.reached == "127.0.0.1"


async def test_data_is_acknowledged_at_once_until_nagle_is_disabled_on_the_agent() -> None:
    """Data is acknowledged at once until the agent has disabled Nagle's algorithm; then the kernel may delay ACKs.

    TCP_QUICKACK reads as 1 while the kernel acknowledges at once (`tcp(7)`).
    """

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"say")
            await reader.readexactly(len(b"answer"))

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


async def test_an_answer_is_sent_at_the_end_of_its_step() -> None:
    """An answer is sent at the end of the step that caused it, and other data in the next iteration of the loop."""
    with unread(Conversing) as (transport, other):
        await arrive(transport, other, b"say")
        transport.reader._on_readable()
        assert transport.get_write_buffer_size() == 0
        assert other.recv(100) == b"answer"

        assert isinstance(transport.protocol, Conversing)
        transport.protocol.data_received(b"later answer")
        assert transport.get_write_buffer_size() == len(b"answer")
        await until(lambda: transport.get_write_buffer_size() == 0)


async def test_during_bulk_sends_input_is_read_after_every_fourth_batch() -> None:
    """Input waits for at most four batches, and is read at once when no batch was sent since the last check."""

    def calls() -> int:
        assert isinstance(transport.protocol, Recording)
        return len(transport.protocol.calls)

    with unread(Recording) as (transport, other):
        await arrive(transport, other, b"adjust")
        for _ in range(BATCHES_PER_READ - 1):
            transport.bulk.send(take_batch(), 8)
            transport.reader._on_readable()
        assert calls() == 1
        transport.bulk.send(take_batch(), 8)
        transport.reader._on_readable()
        assert calls() == 2

        await arrive(transport, other, b"adjust")
        transport.bulk.send(take_batch(), 8)
        transport.reader._on_readable()
        assert calls() == 2
        transport.reader._on_readable()
        assert calls() == 3


class Costly(asyncio.Protocol):
    """Uses up a slice for each piece of `OPAQUE_PIECE_BYTES` bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def data_received(self, data: bytes) -> None:
        """Work for longer than a slice."""
        self.sizes.append(len(data))
        began = time.thread_time()
        while time.thread_time() - began < SLICE:
            pass


async def test_a_read_that_takes_too_long_continues_in_later_steps() -> None:
    """A large read of costly messages is processed completely and in order, over several iterations of the loop."""
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


async def test_a_queued_connection_is_not_watched() -> None:
    """While a read waits in the fair queue, the socket is not watched."""
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


async def test_a_queued_read_of_an_ended_connection_does_nothing() -> None:
    """A read that waits in the fair queue does nothing if the connection has ended."""
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


async def test_a_reset_is_reported_with_its_error() -> None:
    """A reset is reported once with its error, whether reading or writing finds it."""

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    for write in (b"", b"x"):
        async with running_tcp_server(reset) as endpoint:
            transport, protocol = await dialled(endpoint.port)
            await until(lambda stream=transport._stream, calls=protocol.calls: not stream.silent or len(calls) > 1)
            if write:
                transport.write(write)
            await until(lambda calls=protocol.calls: len(calls) > 1)
            transport.abort()
            transport.write(b"into nothing")
            await loop_iteration()
        (lost,) = protocol.calls[1:]
        assert isinstance(lost, tuple)
        assert isinstance(lost[1], ConnectionError)
        assert transport.is_closing()


async def test_writes_of_one_iteration_are_sent_together() -> None:
    """All writes of one iteration of the loop arrive in one read: asyncssh writes each message separately."""
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


async def test_an_abort_sends_what_was_written_before() -> None:
    """A DISCONNECT that asyncssh writes just before it aborts is sent."""
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
    """Return a transport and its protocol."""
    transport, protocol = await Dialer(["127.0.0.1"]).create_connection(Recording, "", port)
    assert isinstance(transport, SshTransport)
    assert isinstance(protocol, Recording)
    return transport, protocol


async def test_a_writer_waits_while_the_socket_accepts_nothing() -> None:
    """A writer waits while too much is unsent, and continues when the other side reads."""
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
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            waiting = tasks.create_task(transport.writable())
            await until(lambda: transport._stream._turns)
            assert not waiting.done()
            assert not transport.bulk.idle()

            reading.set()
        await until(transport.bulk.idle)
        transport.abort()
        await until(lambda: ("lost", None) in protocol.calls)


async def loop_iteration() -> None:
    """Let the loop iterate once, so that the socket takes what it can."""
    await asyncio.sleep(0)


async def test_a_lost_connection_blocks_no_writer() -> None:
    """Writers that wait for the socket or for the end of a key exchange return when the connection ends."""

    async def stay(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await asyncio.Event().wait()

    async with running_tcp_server(stay) as endpoint:
        full, _ = await dialled(endpoint.port)
        exchanging, _ = await dialled(endpoint.port)
        full.write(bytes(64 << 20))
        exchanging.expect(exchanging.bytes_written, 1)  # which is never written
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            waiting = [tasks.create_task(transport.writable()) for transport in (full, exchanging)]
            await until(lambda: full._stream._turns)  # the first writer waits
            assert not any(task.done() for task in waiting)
            full.abort()
            exchanging.abort()


async def test_a_batch_is_reused_once_its_last_byte_is_sent() -> None:
    """A batch returns to the pool only after the kernel has taken its last byte."""
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
    """The protocol is created once, after an address has answered, although an earlier address refused."""
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
    """A dialer without addresses, or whose addresses refuse, raises UnreachableError with the reason."""
    with pytest.raises(UnreachableError, match="no address"):
        await Dialer([]).create_connection(Recording, "", 22)
    with pytest.raises(UnreachableError, match="refused"):
        await Dialer(["127.0.0.1"]).create_connection(Recording, "", free_port())
