"""How a bulk send ends: with its source, its channel, its connection, or an error."""

import asyncio
import socket
import struct

import pytest

from tests.dataplane.channel_pair import CONTENT, KIB, MIB, ChannelPair, open_channel_pair
from tests.until import until
from tunnelmgr.dataplane.pump import Pump


async def test_a_source_that_ends_early_returns_the_number_of_bytes_sent() -> None:
    """If the source ends before the limit, the result is less than the limit."""
    async with open_channel_pair() as pair, asyncio.TaskGroup() as tasks:
        tasks.create_task(pair.source.send(CONTENT[:100_000]), name="source")
        assert await pair.ours.send_from(pair.source.stream, 200_000, lambda _: None) == 100_000


async def test_a_source_that_breaks_is_an_error() -> None:
    """A reset of the source raises ConnectionError instead of ending the send."""
    async with open_channel_pair() as pair:
        pair.source.feed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.source.feed.close()
        with pytest.raises(ConnectionError):
            await pair.send_all()


async def test_progress_is_reported_batch_by_batch() -> None:
    """`on_sent` is called with the size of each batch while the send is running."""
    sizes: list[int] = []
    async with open_channel_pair(window=8 * MIB) as pair, asyncio.TaskGroup() as tasks:
        tasks.create_task(pair.source.send(CONTENT), name="source")
        await pair.ours.send_from(pair.source.stream, len(CONTENT), sizes.append)
    assert sum(sizes) == len(CONTENT)
    assert len(sizes) > 3


async def fails(pair: ChannelPair) -> bool:
    """Send until that fails; returns whether it did."""
    try:
        await pair.send_all()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("end", ["the agent's close", "an abort of ours", "a lost connection", "the agent's abort"])
async def test_every_end_wakes_a_pump_that_waits_for_the_window(end: str) -> None:
    """However a channel ends, a pump that waits for the window fails at once, and the source is no longer watched."""
    async with open_channel_pair(window=64 * KIB) as pair:
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            feeding = tasks.create_task(pair.source.send(CONTENT), name="source")
            sending = tasks.create_task(fails(pair), name="send")
            await until(lambda: pair.chan._send_window < 64 * KIB // 8)
            match end:
                case "the agent's close":
                    pair.writer.channel.abort()
                case "an abort of ours":
                    pair.ours.abort()
                case "a lost connection":
                    pair.connection.abort()
                case _:
                    pair.server.abort()
            assert await sending
            feeding.cancel()
        assert pair.source.stream._reader is None
        with pytest.raises(ConnectionError):
            await pair.send_all()


async def test_a_cancelled_send_reads_no_more() -> None:
    """After a cancellation, nothing more is read from the source, even if the agent's window opens."""
    async with open_channel_pair(window=64 * KIB) as pair:
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(pair.source.send(CONTENT), name="source")
            sending = tasks.create_task(pair.send_all(), name="send")
            await until(lambda: pair.chan._send_window < 64 * KIB // 8)
            sent = sum(pair.bulk)
            sending.cancel()
            await asyncio.sleep(0)
            pair.reader.channel.resume_reading()
            await until(lambda: pair.chan._send_window >= 64 * KIB // 8)
            await pair.agent_processed()
            feeding.cancel()
        assert sum(pair.bulk) == sent


async def test_an_error_in_a_step_is_raised_by_the_send(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in a step, which is a callback of the loop, is raised to the caller of `send_from`."""

    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Pump, "_continue", broken)
    async with open_channel_pair() as pair:
        pair.source.feed.send(b"x")
        with pytest.raises(RuntimeError, match="a fault"):
            await pair.send_all()


async def test_a_half_closed_agent_receives_everything() -> None:
    """After the agent's EOF, our end still sends everything, and its own EOF after the last byte."""
    async with open_channel_pair() as pair:
        pair.writer.write_eof()
        assert await pair.ours.read() == b""
        assert await pair.carried(CONTENT) == CONTENT
