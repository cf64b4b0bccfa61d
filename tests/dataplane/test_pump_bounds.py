"""What the pump leaves unsent or unread, and when it waits."""

import asyncio
from itertools import pairwise

import pytest
from asyncssh.constants import MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.packet import UInt32

from tests.dataplane.channel_pair import ALL, CONTENT, KIB, MIB, ChannelPair, open_channel_pair
from tests.until import until
from tunnelmgr.dataplane.pump import Pump
from tunnelmgr.dataplane.ssh_packets import BATCH_PACKETS, PACKET_DATA_BYTES


async def test_an_agent_that_does_not_read_stops_the_pump_with_nothing_queued() -> None:
    """Data beyond the agent's window stays unread in the source's socket, and is sent when the agent reads."""
    async with open_channel_pair(window=256 * KIB) as pair:
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pair.source.send(CONTENT), name="source")
            sending = tasks.create_task(pair.send_all(), name="send")
            await until(lambda: pair.chan._send_window < 256 * KIB // 8)
            await pair.sender_waits()
            assert not sending.done()
            assert pair.chan.get_write_buffer_size() == 0

            pair.reader.channel.resume_reading()
            assert await pair.reader.read() == CONTENT


@pytest.mark.parametrize(("others", "packets"), [(0, 2), (1, 4), (3, 8), (30, 8)])
async def test_pumps_that_share_a_connection_wait_for_a_larger_window(others: int, packets: int) -> None:
    """With OpenSSH's window of 2 MiB, a pump waits for 1/32 of it per pump, at most 1/8."""
    async with open_channel_pair(window=2 * MIB) as pair:
        pair.transport.bulk.pumps += others
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pair.source.send(CONTENT), name="source")
            sending = tasks.create_task(pair.send_all(), name="send")
            await until(lambda: pair.chan._send_window < packets * PACKET_DATA_BYTES)
            sent = sum(pair.bulk)
            await opens(pair, packets * PACKET_DATA_BYTES - 1)
            assert sum(pair.bulk) == sent
            await opens(pair, packets * PACKET_DATA_BYTES)
            assert sum(pair.bulk) > sent
            pair.reader.channel.resume_reading()
            assert await pair.reader.read() == CONTENT
            assert await sending == len(CONTENT)


async def opens(pair: ChannelPair, window: int) -> None:
    """Open the agent's window to `window` bytes, and wait until our end has acted on it."""
    room = window - pair.chan._send_window
    pair.writer.channel.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(room))
    pair.writer.channel._recv_window += room
    await pair.agent_processed()


async def test_with_a_huge_window_no_more_than_a_batch_is_unsent() -> None:
    """If the socket accepts no more, at most one batch is unsent, and the source is not read."""
    async with open_channel_pair(window=1 << 31) as pair, asyncio.TaskGroup() as tasks:
        pair.server._transport.pause_reading()
        feeding = tasks.create_task(pair.source.send(*[CONTENT] * 16), name="source")
        unsent: list[int] = []

        def record(_: int) -> None:
            unsent.append(pair.transport.get_write_buffer_size())

        sending = tasks.create_task(pair.ours.send_from(pair.source.stream, ALL, record), name="send")
        await until(lambda: pair.transport.get_write_buffer_size() and pair.source.stream._reader is None)
        assert max(unsent) <= BATCH_PACKETS * (PACKET_DATA_BYTES + 64)
        assert pair.transport.get_write_buffer_size() <= BATCH_PACKETS * (PACKET_DATA_BYTES + 64)
        feeding.cancel()
        sending.cancel()
        pair.server._transport.resume_reading()


async def test_other_tasks_run_between_two_batches() -> None:
    """The loop iterates at least once between two batches of a large body."""
    turns = [0]

    async def count() -> None:
        while not done.is_set():
            turns.append(turns[-1] + 1)
            await asyncio.sleep(0)

    done, at = asyncio.Event(), []
    async with open_channel_pair(window=8 * MIB) as pair, asyncio.TaskGroup() as tasks:
        tasks.create_task(pair.source.send(CONTENT), name="source")
        tasks.create_task(count(), name="other")
        await pair.ours.send_from(pair.source.stream, len(CONTENT), lambda _: at.append(turns[-1]))
        done.set()
    assert all(later > earlier for earlier, later in pairwise(at))


async def test_a_batch_waits_until_other_writes_are_sent() -> None:
    """No batch is sent while anything is unsent on the connection, because packets must not overtake each other."""
    async with open_channel_pair(window=8 * MIB) as pair, asyncio.TaskGroup() as tasks:
        pair.server._transport.pause_reading()
        transport = pair.transport
        pair.chan.set_write_buffer_limits(1 << 30)
        while transport.bulk.idle():
            pair.chan.write(CONTENT[:MIB])
        before = list(pair.bulk)
        tasks.create_task(pair.source.send(b"and then this"), name="source")
        sending = tasks.create_task(pair.send_all(), name="send")
        await until(lambda: transport._stream._turns)  # the pump waits for an idle connection
        assert pair.bulk == before
        pair.server._transport.resume_reading()
        assert (await pair.reader.read()).endswith(CONTENT[:MIB] + b"and then this")
        assert await sending == len(b"and then this")


@pytest.mark.parametrize("verified", [True, False])
async def test_a_key_exchange_that_never_ends_lets_no_more_than_a_piece_out(
    verified: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """During a key exchange asyncssh buffers without bound, so the pump gives it one piece and then waits."""
    if not verified:
        request.getfixturevalue("unverified_asyncssh")
    polls: list[Pump] = []
    send = Pump._send_through_asyncssh
    monkeypatch.setattr(Pump, "_send_through_asyncssh", lambda pump: (polls.append(pump), send(pump)))
    async with open_channel_pair() as pair, asyncio.TaskGroup() as tasks:
        pair.server._transport.pause_reading()
        pair.conn._send_kexinit()  # which the server does not answer
        pair.conn._kexinit_sent = True
        feeding = tasks.create_task(pair.source.send(CONTENT), name="source")
        sending = tasks.create_task(pair.send_all(), name="send")
        await until(lambda: pair.transport.exchanging_keys)
        polls.clear()
        await until(lambda: len(polls) > 2)  # the pump has checked again, and sent nothing
        held = [len(b"".join(parts)) for _, parts in pair.conn._deferred_packets]
        assert (len(held), max(held) <= PACKET_DATA_BYTES + 16) == (1, True)
        assert pair.bulk == []

        pair.server._transport.resume_reading()
        assert await pair.reader.read() == CONTENT
        assert await sending == len(CONTENT)
        assert feeding.done()
