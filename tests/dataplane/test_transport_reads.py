"""When the transport reads and acknowledges: during bulk sends, over several steps, and in the fair queue."""

import asyncio
import socket
import time

from tests.dataplane.unread_transport import Recording, arrive, unread
from tests.ssh.ssh_server import running_tcp_server
from tests.until import until
from tunnelmgr.dataplane.batches import BATCHES_PER_READ, take_batch
from tunnelmgr.dataplane.fair_queue import HARD_LIMIT, SLICE, Share, fair_queue
from tunnelmgr.dataplane.fast_path import OPAQUE_PIECE_BYTES
from tunnelmgr.dataplane.paced_reader import MAX_READ_BYTES, MAX_REPORTS
from tunnelmgr.ssh.dialer import Dialer


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


async def test_a_connection_that_stays_queued_is_not_watched() -> None:
    """While a read waits in the fair queue, the socket is watched for a few reports only."""
    with unread(Recording) as (transport, other):
        share = Share(fair_queue(asyncio.get_running_loop()))
        await arrive(transport, other, b"hello")
        share.run(lambda: _use_up(2 * HARD_LIMIT))
        transport._stream.notify_readable(transport.reader._on_readable)
        transport.reader._on_readable()
        assert isinstance(transport.protocol, Recording)
        assert transport.protocol.calls == ["made"]

        for _ in range(MAX_REPORTS - 1):
            transport.reader._on_readable()
        assert transport._stream._reader is not None
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
