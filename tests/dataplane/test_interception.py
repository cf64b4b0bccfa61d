"""What a channel's owner takes before it is read, and readers that wait for something else too."""

import asyncio

from tests.dataplane.test_channel import PIECE, connected_pair
from tests.ssh.ssh_server import Sshd
from tests.until import until
from tunnelmgr.dataplane.receive_window import INITIAL_WINDOW_BYTES
from tunnelmgr.ssh.login import Login


async def test_intercepted_data_is_not_read(sshd: Sshd, login: Login) -> None:
    """What is taken reaches no reader; what is not taken is read as usual, and so is what follows unread data."""
    offered: list[bytes] = []

    def takes(data: bytes) -> bool:
        offered.append(data)
        return data.startswith(b"probe")

    async with connected_pair(sshd, login) as pair:
        pair.ours.intercept(takes)
        for data in (b"probe 1", b"request"):
            pair.writer.write(data)
            await until(lambda data=data: data in offered)
        pair.writer.write(b"probe 2")
        await until(lambda: pair.ours._received.size == len(b"requestprobe 2"))

        assert offered == [b"probe 1", b"request"]
        assert await pair.ours.read() + await pair.ours.read() == b"requestprobe 2"
        pair.ours.intercept(None)
        pair.writer.write(b"probe 3")
        assert await pair.ours.read() == b"probe 3"


async def test_intercepted_data_counts_as_read(sshd: Sshd, login: Login) -> None:
    """An agent may send more than its window if all of it is taken."""
    taken = 0

    def takes(data: bytes) -> bool:
        nonlocal taken
        taken += len(data)
        return True

    async with connected_pair(sshd, login) as pair:
        pair.ours.intercept(takes)
        for _ in range(3 * INITIAL_WINDOW_BYTES // len(PIECE)):
            pair.writer.write(PIECE)

        await until(lambda: taken == 3 * INITIAL_WINDOW_BYTES)


async def test_a_reader_may_wait_for_something_else_too(sshd: Sshd, login: Login) -> None:
    """`read_unless` ends when its condition holds and it is woken; data comes first, and both ends are reported."""
    done = False
    async with connected_pair(sshd, login) as pair, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(pair.ours.read_unless(lambda: done), name="reader")
        await asyncio.sleep(0)
        pair.ours.wake()
        await asyncio.sleep(0)
        assert not waiting.done()

        done = True
        pair.ours.wake()
        assert await waiting is None

        pair.writer.write(b"data")
        await until(lambda: pair.ours._received.size)
        assert await pair.ours.read_unless(lambda: done) == b"data"
        pair.writer.write_eof()
        assert await pair.ours.read_unless(lambda: False) == b""
