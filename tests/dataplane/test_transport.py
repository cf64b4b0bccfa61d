"""asyncssh's transport and its reader: flow control, pace, and addresses in order."""

import asyncio
import socket
import struct
from contextlib import suppress

import pytest

from tests.dataplane.unread_transport import Recording
from tests.ssh.ssh_server import free_port, running_tcp_server
from tests.until import until
from tunnelmgr.dataplane.batches import take_batch
from tunnelmgr.dataplane.transport import MAX_UNSENT_BYTES, SshTransport
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.dialer import Dialer


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
