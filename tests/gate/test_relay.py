"""The raw relay: bytes both ways, half-closes kept, both sides released."""

import asyncio
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from tests.gate.conftest import MemoryChannel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.target_socket import TargetSocket
from tunnelmgr.gate.traffic import Traffic

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted


async def test_bytes_pass_both_ways_and_half_closes_are_kept(channel: "MemoryChannel", scripted: "Scripted") -> None:
    """The target hears the agent's end and still gets to answer."""

    async def reverse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])

    traffic = Traffic()

    async with scripted(reverse) as target, asyncio.timeout(10):
        channel.send(b"ab")
        channel.send(b"c")
        channel.end()
        await relay(channel, target.endpoint, traffic)

    assert bytes(channel.outgoing) == b"cba"
    assert channel.ended
    assert channel.closed
    assert not channel.aborted
    assert traffic == Traffic(channels=0, to_agent=3, from_agent=3)


async def test_a_large_transfer_arrives_whole_in_bounded_pieces(channel: "MemoryChannel", scripted: "Scripted") -> None:
    """Both directions wait for each other instead of piling up."""
    content = bytes(range(256)) * 32768

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async with scripted(echo) as target, asyncio.timeout(30):
        for start in range(0, len(content), 1 << 20):
            channel.send(content[start : start + (1 << 20)])
        channel.end()
        await relay(channel, target.endpoint, Traffic())

    assert bytes(channel.outgoing) == content
    assert channel.largest_write <= 256 * 1024


async def test_a_target_that_is_away_aborts_the_channel(channel: "MemoryChannel") -> None:
    """There is nothing that a raw stream could be told."""
    async with asyncio.timeout(10):
        await relay(channel, Endpoint("127.0.0.1", 1), Traffic())

    assert channel.aborted


async def test_a_target_that_is_away_is_told_once_in_a_while() -> None:
    """An agent that opens channels without end does not fill the log."""
    traffic = Traffic()

    with capture_logs() as lines:
        for _ in range(20):
            async with asyncio.timeout(10):
                await relay(MemoryChannel(), Endpoint("127.0.0.1", 1), traffic)

    assert [line["event"] for line in lines] == ["relay target unreachable"]
    traffic = Traffic()
    assert [traffic.may_warn(now) for now in (100.0, 104.9, 105.0, 109.9)] == [True, False, True, False]


async def test_a_reset_agent_resets_the_target(channel: "MemoryChannel", scripted: "Scripted") -> None:
    """The other side must not take a broken stream for a whole one."""

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(listen) as target, asyncio.timeout(10):
        channel.send(b"a")
        channel.reset()
        await relay(channel, target.endpoint, Traffic())

    assert channel.aborted


async def test_a_revoked_relay_is_aborted_at_once(channel: "MemoryChannel", scripted: "Scripted") -> None:
    """Cancellation reaches both sides and is not swallowed."""
    traffic = Traffic()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.readexactly(1)

    async with scripted(listen) as target, asyncio.timeout(10):
        async with asyncio.TaskGroup() as tasks:
            relaying = tasks.create_task(relay(channel, target.endpoint, traffic), name="relay")
            async with channel.changed:
                await channel.changed.wait_for(lambda: channel.outgoing)
            assert traffic.channels == 1
            relaying.cancel()
        await target.lost.wait()

    assert relaying.cancelled()
    assert channel.aborted
    assert traffic.channels == 0


async def test_a_target_that_does_not_answer_in_time_is_away() -> None:
    """Connecting has a deadline."""
    with pytest.raises(RegistryUnavailableError, match="no answer in time"):
        await TargetSocket.open(Endpoint("127.0.0.1", 1), timeout=0)


async def write_for_ever(upstream: TargetSocket) -> None:
    """Write until it fails."""
    while True:
        await upstream.write(bytes(1 << 20))


async def test_writing_to_a_lost_target_is_an_error(scripted: "Scripted") -> None:
    """It is not silently dropped, not even by a writer that was waiting."""
    started = asyncio.Event()

    async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await started.wait()
        writer.transport.abort()

    async with scripted(stall) as target, asyncio.timeout(10):
        upstream = await TargetSocket.open(target.endpoint)
        started.set()
        with pytest.raises(ConnectionError):
            await write_for_ever(upstream)
        with pytest.raises(ConnectionError):
            await upstream.write(b"x")
        upstream.write_eof()
        with pytest.raises(ConnectionError):
            await upstream.read()
        upstream.abort()


async def test_a_connection_that_we_closed_reads_as_ended(scripted: "Scripted") -> None:
    """After an abort of ours there is nothing more to come."""

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(listen) as target, asyncio.timeout(10):
        upstream = await TargetSocket.open(target.endpoint)
        upstream.abort()
        assert await upstream.read() == b""
        assert not upstream.idle
