"""The registry's side of a channel: nothing is read ahead, and whatever ends it wakes whoever waits."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.gate.target_socket import MAX_UNSENT, TargetSocket

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted

SENT = 4 * 1024 * 1024


async def test_a_registry_that_sends_faster_than_we_read_is_held_back_and_loses_nothing(scripted: "Scripted") -> None:
    """What nobody asks for waits with the registry; reading lets the rest come."""
    all_sent = asyncio.Event()

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(16 * SENT))
        await writer.drain()
        all_sent.set()

    async with asyncio.timeout(30), scripted(flood) as registry:
        upstream = await TargetSocket.open(registry.endpoint)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(all_sent.wait(), 0.2)
        got = 0
        while data := await upstream.read():
            got += len(data)
        upstream.abort()

    assert got == 16 * SENT


async def test_a_registry_that_does_not_read_holds_the_writer(scripted: "Scripted") -> None:
    """Up to a bound; once it reads, the writer goes on."""
    reading = asyncio.Event()
    got = bytearray()

    async def read_late(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        while data := await reader.read(1 << 20):
            got.extend(data)

    async with asyncio.timeout(30), scripted(read_late) as registry:
        upstream = await TargetSocket.open(registry.endpoint)
        sent: list[int] = []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_for_ever(upstream, sent), 0.2)
        reading.set()
        await upstream.drained()
        upstream.write_eof()
        assert await upstream.read() == b""
        upstream.close()

    assert len(got) == sum(sent)


async def send_for_ever(upstream: TargetSocket, sent: list[int]) -> None:
    """Send, and wait whenever too much is unsent."""
    while True:
        sent.append(MAX_UNSENT)
        if not upstream.send(bytes(MAX_UNSENT)):
            await upstream.drained()


async def test_reads_in_a_row_and_a_read_that_was_given_up_lose_nothing(scripted: "Scripted") -> None:
    """Bytes that come while nobody asks are there for the next who does."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            await reader.readexactly(1)
            writer.write(b"x")

    async with asyncio.timeout(10), scripted(drip) as registry:
        upstream = await TargetSocket.open(registry.endpoint)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(upstream.read(), 0.01)
        for _ in range(20):
            await upstream.write(b"?")
            assert await upstream.read() == b"x"
        assert await upstream.read() == b""
        upstream.abort()


async def test_an_answer_that_came_before_the_connection_broke_is_read(scripted: "Scripted") -> None:
    """A registry that refuses early answers and hangs up, while the body still goes out."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"HTTP/1.1 413 Too large\r\n\r\n")
        await writer.drain()

    async with asyncio.timeout(10), scripted(refuse) as registry:
        upstream = await TargetSocket.open(registry.endpoint)
        with pytest.raises(ConnectionError):
            await write_for_ever(upstream)
        assert (await upstream.read()).startswith(b"HTTP/1.1 413")
        with pytest.raises(ConnectionError):
            await upstream.read()
        upstream.abort()


async def write_for_ever(upstream: TargetSocket) -> None:
    """Write until it fails."""
    while True:
        await upstream.write(bytes(1 << 16))


Wait = Callable[[TargetSocket], Awaitable[object]]


@pytest.mark.parametrize("wait", [TargetSocket.read, write_for_ever], ids=["read", "write"])
async def test_whoever_waits_is_let_go_when_we_abort(scripted: "Scripted", wait: Wait) -> None:
    """A reader has its end, a writer its error."""

    async def stall(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.wait_closed()

    @asynccontextmanager
    async def waiting(upstream: TargetSocket):  # noqa: ANN202 - a context
        async with asyncio.TaskGroup() as tasks:

            async def run() -> None:
                try:
                    assert await wait(upstream) == b""
                except ConnectionError:
                    assert wait is write_for_ever

            tasks.create_task(run(), name="wait")
            await asyncio.sleep(0.05)
            yield

    async with asyncio.timeout(10), scripted(stall) as registry:
        upstream = await TargetSocket.open(registry.endpoint)
        async with waiting(upstream):
            upstream.abort()
