"""A socket read into its reader's buffers and written without copies: no read-ahead, no loss, fair order."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from tests.ssh.ssh_server import free_port
from tests.until import until
from tunnelmgr.dataplane.stream import Stream, connect, first_bytes

MIB = 1024 * 1024


@dataclass
class Ends:
    """A stream, the socket at its other end, and the losses that were reported."""

    stream: Stream
    other: socket.socket
    losses: list[OSError] = field(default_factory=list)

    def fill(self) -> int:
        """Send until the kernel takes no more; returns how many bytes were sent."""
        total = 0
        while not self.stream.unsent:
            self.stream.send(bytes(MIB))
            total += MIB
        return total

    async def take(self, count: int) -> bytes:
        """Read this many bytes at the other end, or up to its end."""
        got = bytearray()
        async with asyncio.timeout(10):
            while len(got) < count and (more := await self._recv(count - len(got))):
                got += more
        return bytes(got)

    async def _recv(self, most: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.other, min(most, MIB))

    def reset(self) -> None:
        """Break the connection at the other end (`socket(7)`, SO_LINGER)."""
        self.other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.other.close()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """Return both ends, and close them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    other.setblocking(False)
    losses: list[OSError] = []
    pair = Ends(Stream(ours, losses.append), other, losses)
    yield pair
    pair.stream.abort()
    other.close()


# --- reading ---


async def test_nothing_is_read_before_it_is_asked_for(ends: Ends) -> None:
    """A sender that is not read fills the kernel's buffers, and then its own socket blocks."""
    sent = 0
    with suppress(BlockingIOError):
        while sent < 64 * MIB:
            sent += ends.other.send(bytes(MIB))
            await asyncio.sleep(0)

    assert sent < 64 * MIB


async def test_received_bytes_fill_the_buffers_in_order(ends: Ends) -> None:
    """A receive fills the buffers in order, and returns None if nothing has arrived and 0 at the end."""
    room = memoryview(bytearray(6))
    assert ends.stream.receive_into((room,)) is None
    assert ends.stream.receive(10) is None

    ends.other.send(b"abcde")
    readable = asyncio.Event()
    ends.stream.notify_readable(readable.set)
    await asyncio.wait_for(readable.wait(), 5)

    assert ends.stream.receive_into((room[:2], room[2:4])) == 4
    assert bytes(room) == b"abcd\0\0"
    assert ends.stream.receive(10) == b"e"
    ends.other.close()
    readable.clear()
    await asyncio.wait_for(readable.wait(), 5)
    assert ends.stream.receive_into((room,)) == 0
    assert ends.stream.receive(10) == b""


async def test_a_reader_is_called_until_it_is_replaced(ends: Ends) -> None:
    """A reader is called in every iteration while bytes wait, and no more once it is replaced."""
    calls: list[str] = []
    ends.other.send(b"x")

    ends.stream.notify_readable(lambda: calls.append("first"))
    await until(lambda: calls.count("first") > 2)
    ends.stream.notify_readable(lambda: calls.append("second"))
    await until(lambda: calls.count("second") > 2)
    ends.stream.notify_readable(None)
    calls.clear()
    for _ in range(5):
        await asyncio.sleep(0)

    assert calls == []


async def test_a_broken_connection_is_a_connection_error_to_its_reader(ends: Ends) -> None:
    """A reader gets a ConnectionError for every error of the kernel that breaks a connection."""
    ends.reset()
    readable = asyncio.Event()
    ends.stream.notify_readable(readable.set)
    await asyncio.wait_for(readable.wait(), 5)

    with pytest.raises(ConnectionError):
        ends.stream.receive(10)


async def test_a_stream_is_silent_while_nothing_can_be_read(ends: Ends) -> None:
    """A stream is silent if neither bytes nor the end wait; the check consumes nothing."""
    assert ends.stream.silent

    ends.other.send(b"x")
    await until(lambda: not ends.stream.silent)
    assert ends.stream.receive(10) == b"x"
    assert ends.stream.silent
    ends.other.close()
    await until(lambda: not ends.stream.silent)
    ends.stream.abort()
    assert not ends.stream.silent


# --- writing ---


async def test_what_the_kernel_does_not_take_at_once_follows_in_order(ends: Ends) -> None:
    """All bytes are sent once, in the order of the calls, whether put off or sent, few or many."""
    ends.stream.put_off(b"a")
    ends.stream.put_off(b"")
    ends.stream.put_off(b"b")
    assert ends.stream.unsent == 2
    ends.stream.send(b"c")
    assert ends.stream.unsent == 0

    sent = ends.fill()
    for number in range(200):  # more than one call to the kernel takes
        ends.stream.put_off(bytes([number]))
    ends.stream.flush()
    got = await ends.take(3 + sent + 200)

    assert got == b"abc" + bytes(sent) + bytes(range(200))
    assert ends.stream.unsent == 0


async def test_callers_that_wait_are_called_one_after_another(ends: Ends) -> None:
    """Each caller runs while nothing is unsent; one that fills the socket again makes the others wait, in order."""
    turns: list[int] = []
    sent = [ends.fill()]

    def turn(number: int) -> Callable[[], None]:
        def take() -> None:
            assert ends.stream.unsent == 0
            turns.append(number)
            if number == 1:
                ends.stream.send(bytes(64 * MIB))
                sent.append(64 * MIB)

        return take

    for number in range(4):
        ends.stream.when_drained(turn(number))
    first = await ends.take(sent[0])
    await until(lambda: turns == [0, 1])
    for _ in range(5):
        await asyncio.sleep(0)
    assert turns == [0, 1]
    second = await ends.take(sent[1])
    await until(lambda: turns == [0, 1, 2, 3])

    assert (len(first), len(second)) == tuple(sent)


async def test_a_caller_that_waits_for_put_off_data_is_called(ends: Ends) -> None:
    """A caller is called even if the kernel takes the put-off data at once."""
    turn = asyncio.Event()
    ends.stream.put_off(b"x")
    ends.stream.when_drained(turn.set)
    ends.stream.flush()

    await asyncio.wait_for(turn.wait(), 5)


async def test_a_loss_while_writing_is_reported_once_and_what_has_arrived_can_be_read(ends: Ends) -> None:
    """Bytes that arrived before the connection broke can still be read."""
    ends.other.send(b"last words")
    await until(lambda: not ends.stream.silent)
    ends.fill()
    ends.stream.when_drained(lambda: pytest.fail("nothing was drained"))
    ends.reset()
    await until(lambda: ends.losses)

    assert ends.stream.failure is not None
    assert ends.stream.unsent == 0
    ends.stream.send(b"more")
    ends.stream.flush()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(ends.losses) == 1
    assert isinstance(ends.losses[0], ConnectionError)
    assert ends.stream.receive(100) == b"last words"
    assert not ends.stream.silent


# --- ending ---


async def test_an_end_comes_after_all_that_was_sent_and_reading_goes_on(ends: Ends) -> None:
    """The end of our direction comes after all sent bytes, and the other direction stays open."""
    sent = ends.fill()
    ends.stream.end()
    got = await ends.take(sent + 1)
    ends.other.send(b"still")

    assert len(got) == sent
    await until(lambda: not ends.stream.silent)
    assert ends.stream.receive(10) == b"still"


async def test_an_end_with_nothing_unsent_is_sent_at_once(ends: Ends) -> None:
    """The other side gets the end at once; ending again, or after a loss, does nothing."""
    ends.stream.end()
    assert await ends.take(1) == b""
    ends.reset()
    await until(lambda: not ends.stream.silent)
    ends.stream.end()
    ends.stream.abort()
    ends.stream.end()


async def test_a_close_sends_everything_first(ends: Ends) -> None:
    """A close sends everything before it closes the socket."""
    sent = ends.fill()
    ends.stream.close()
    assert not ends.stream.closed

    assert len(await ends.take(sent + 1)) == sent
    assert ends.stream.closed
    ends.stream.close()


async def test_an_abort_drops_what_is_unsent_and_reads_no_more(ends: Ends) -> None:
    """An abort closes at once, calls no reader afterwards, and can be repeated."""
    ends.fill()
    ends.stream.notify_readable(lambda: pytest.fail("a reader was called after the abort"))
    ends.stream.abort()
    ends.stream.abort()
    ends.stream.notify_readable(lambda: pytest.fail("a reader was called after the abort"))
    ends.stream.send(b"x")

    assert ends.stream.closed
    assert ends.stream.unsent == 0
    assert ends.losses == []


async def test_a_reset_drops_what_the_kernel_has_not_sent(ends: Ends) -> None:
    """A reset abort drops the kernel's buffer, and the other side sees a reset."""
    ends.fill()
    ends.stream.abort(reset=True)
    with pytest.raises(ConnectionResetError):
        await ends.take(1 << 40)


# --- connecting ---


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_literal_and_a_name_are_connected_to(host: str) -> None:
    """A literal address is connected to, and a name by its first address that answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connected = await connect(host, server.getsockname()[1])
        with connected:
            assert connected.getpeername()[0] == "127.0.0.1"


async def test_an_ipv6_literal_is_connected_to() -> None:
    """An agent with only an IPv6 address can be reached."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        connected = await connect("::1", server.getsockname()[1])
        connected.close()


async def test_a_refused_connection_is_the_kernels_error() -> None:
    """A refused connect raises ConnectionRefusedError and leaves no socket, for which the test run would fail."""
    with pytest.raises(ConnectionRefusedError):
        await connect("127.0.0.1", free_port())


async def test_a_cancelled_connect_leaves_no_socket_behind() -> None:
    """A connect that is cancelled by the caller's deadline leaves no socket."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.create_connection(full.getsockname())]  # the next connection is not answered
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connect(*full.getsockname()), 0.05)
        for one in waiting:
            one.close()


async def test_the_first_bytes_are_awaited_and_left_unread() -> None:
    """After the wait, the first bytes can still be read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(first_bytes(ours), name="first bytes")
            await asyncio.sleep(0)
            theirs.send(b"SSH-2.0-x")

        assert ours.recv(100) == b"SSH-2.0-x"


async def test_a_server_that_closes_before_its_first_byte_is_an_error() -> None:
    """A server that closes without sending anything, as sshd does beyond MaxStartups, raises ConnectionError."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        theirs.close()
        with pytest.raises(ConnectionError, match="without sending anything"):
            await first_bytes(ours)
