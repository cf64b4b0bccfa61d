"""The raw relay forwards bytes and half-closes both ways, and releases both sides."""

import asyncio
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from tests.gate.memory_channel import MemoryChannel
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.target_socket import TargetSocket
from tunnelmgr.gate.traffic import Traffic

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted


async def test_bytes_and_half_closes_pass_both_ways(channel: "MemoryChannel", scripted: "Scripted") -> None:
    """The target gets the agent's half-close and can still respond."""

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
    """A large transfer in both directions arrives whole, in writes of bounded size."""
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


async def test_an_unreachable_target_aborts_the_channel(channel: "MemoryChannel") -> None:
    """If the target is unreachable, the channel is aborted."""
    async with asyncio.timeout(10):
        await relay(channel, Endpoint("127.0.0.1", 1), Traffic())

    assert channel.aborted


async def test_an_unreachable_target_is_logged_at_most_every_few_seconds() -> None:
    """An unreachable target is logged at most once in `WARN_EVERY` seconds, however many channels the agent opens."""
    traffic = Traffic()

    with capture_logs() as lines:
        for _ in range(20):
            async with asyncio.timeout(10):
                await relay(MemoryChannel(), Endpoint("127.0.0.1", 1), traffic)

    assert [line["event"] for line in lines] == ["relay target unreachable"]
    traffic = Traffic()
    assert [traffic.may_warn(now) for now in (100.0, 104.9, 105.0, 109.9)] == [True, False, True, False]


async def test_a_reset_agent_resets_the_target(channel: "MemoryChannel", scripted: "Scripted") -> None:
    """If the agent's side is reset, the target's side is reset too, so it cannot take the stream for a complete one."""

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(listen) as target, asyncio.timeout(10):
        channel.send(b"a")
        channel.reset()
        await relay(channel, target.endpoint, Traffic())

    assert channel.aborted


async def test_a_revoked_relay_is_aborted_at_once(channel: "MemoryChannel", scripted: "Scripted") -> None:
    """Cancelling a relay aborts both sides, and CancelledError is raised."""
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


async def test_connecting_to_a_target_has_a_deadline() -> None:
    """A target that does not accept the connection before the deadline raises RegistryUnavailableError."""
    with pytest.raises(RegistryUnavailableError, match="no answer in time"):
        await TargetSocket.open(Endpoint("127.0.0.1", 1), timeout=0)


async def write_for_ever(target: TargetSocket) -> None:
    """Write until it fails."""
    while True:
        await target.write(bytes(1 << 20))


async def test_writing_to_a_lost_target_is_an_error(scripted: "Scripted") -> None:
    """Writing to a lost target raises ConnectionError, also in a writer that waits."""
    started = asyncio.Event()

    async def stall(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await started.wait()
        writer.transport.abort()

    async with scripted(stall) as registry, asyncio.timeout(10):
        target = await TargetSocket.open(registry.endpoint)
        started.set()
        with pytest.raises(ConnectionError):
            await write_for_ever(target)
        with pytest.raises(ConnectionError):
            await target.write(b"x")
        target.write_eof()
        with pytest.raises(ConnectionError):
            await target.read()
        target.abort()


async def test_an_aborted_connection_reads_as_ended(scripted: "Scripted") -> None:
    """A read after our own abort returns the end of the stream."""

    async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(listen) as registry, asyncio.timeout(10):
        target = await TargetSocket.open(registry.endpoint)
        target.abort()
        assert await target.read() == b""
        assert not target.idle
