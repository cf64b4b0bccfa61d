"""The socket to a forward's target reads nothing ahead, and its end wakes every waiting task."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.gate.target_socket import MAX_UNSENT, TargetSocket

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted

SENT = 4 * 1024 * 1024


async def test_a_target_that_sends_faster_than_we_read_waits_and_loses_nothing(scripted: "Scripted") -> None:
    """Unread bytes make the target wait, and reading gets all of them."""
    all_sent = asyncio.Event()

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(16 * SENT))
        await writer.drain()
        all_sent.set()

    async with asyncio.timeout(30), scripted(flood) as registry:
        target = await TargetSocket.open(registry.endpoint)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(all_sent.wait(), 0.2)
        got = 0
        while data := await target.read():
            got += len(data)
        target.abort()

    assert got == 16 * SENT


async def test_a_target_that_does_not_read_blocks_the_writer(scripted: "Scripted") -> None:
    """A writer waits once `MAX_UNSENT` bytes are unsent, and continues once the target reads."""
    reading = asyncio.Event()
    got = bytearray()

    async def read_late(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        while data := await reader.read(1 << 20):
            got.extend(data)

    async with asyncio.timeout(30), scripted(read_late) as registry:
        target = await TargetSocket.open(registry.endpoint)
        sent: list[int] = []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_for_ever(target, sent), 0.2)
        reading.set()
        await target.drained()
        target.write_eof()
        assert await target.read() == b""
        target.close()

    assert len(got) == sum(sent)


async def send_for_ever(target: TargetSocket, sent: list[int]) -> None:
    """Send, and wait while too much is unsent."""
    while True:
        sent.append(MAX_UNSENT)
        if not target.send(bytes(MAX_UNSENT)):
            await target.drained()


async def test_a_cancelled_read_loses_nothing(scripted: "Scripted") -> None:
    """Reads one after another, with a cancelled one between them, return all bytes."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            await reader.readexactly(1)
            writer.write(b"x")

    async with asyncio.timeout(10), scripted(drip) as registry:
        target = await TargetSocket.open(registry.endpoint)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(target.read(), 0.01)
        for _ in range(20):
            await target.write(b"?")
            assert await target.read() == b"x"
        assert await target.read() == b""
        target.abort()


async def test_a_response_that_arrived_before_the_connection_broke_is_read(scripted: "Scripted") -> None:
    """A response that arrived before the connection was reset, while a body was being sent, can be read."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"HTTP/1.1 413 Too large\r\n\r\n")
        await writer.drain()

    async with asyncio.timeout(10), scripted(refuse) as registry:
        target = await TargetSocket.open(registry.endpoint)
        with pytest.raises(ConnectionError):
            await write_for_ever(target)
        assert (await target.read()).startswith(b"HTTP/1.1 413")
        with pytest.raises(ConnectionError):
            await target.read()
        target.abort()


async def write_for_ever(target: TargetSocket) -> None:
    """Write until it fails."""
    while True:
        await target.write(bytes(1 << 16))


Wait = Callable[[TargetSocket], Awaitable[object]]


@pytest.mark.parametrize("wait", [TargetSocket.read, write_for_ever], ids=["read", "write"])
async def test_an_abort_ends_a_waiting_read_and_write(scripted: "Scripted", wait: Wait) -> None:
    """An abort ends a waiting read with the end of the stream and a waiting write with an error."""

    async def stall(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.wait_closed()

    async def expect_end(target: TargetSocket) -> None:
        try:
            assert await wait(target) == b""
        except ConnectionError:
            assert wait is write_for_ever

    async with asyncio.timeout(10), scripted(stall) as registry, asyncio.TaskGroup() as tasks:
        target = await TargetSocket.open(registry.endpoint)
        tasks.create_task(expect_end(target), name="wait")
        while target._readable is None and target._stream.unsent <= MAX_UNSENT:  # noqa: ASYNC110
            await asyncio.sleep(0)

        target.abort()
