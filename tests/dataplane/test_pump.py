"""Bulk data from a socket to the agent: complete and in order, for all windows, packet sizes and key exchanges."""

import asyncio
import socket
import struct
from itertools import pairwise

import pytest
from asyncssh.constants import MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.packet import UInt32
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.channel_pair import ALL, CONTENT, KIB, MIB, ChannelPair, FedStream, open_channel_pair
from tests.until import until
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.pump import Pump
from tunnelmgr.dataplane.ssh_packets import BATCH_PACKETS, PACKET_DATA_BYTES

# --- byte for byte ---


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(
        st.one_of(
            st.integers(1, 3 * BATCH_PACKETS * PACKET_DATA_BYTES),
            st.sampled_from(
                [
                    1,
                    PACKET_DATA_BYTES - 1,
                    PACKET_DATA_BYTES,
                    PACKET_DATA_BYTES + 1,
                    BATCH_PACKETS * PACKET_DATA_BYTES + 1,
                ]
            ),
        ),
        min_size=1,
        max_size=6,
    ),
    window=st.one_of(
        st.integers(1024, 3 * MIB), st.sampled_from([PACKET_DATA_BYTES, BATCH_PACKETS * PACKET_DATA_BYTES])
    ),
    packet=st.one_of(st.integers(512, 64 * KIB), st.sampled_from([PACKET_DATA_BYTES - 1, PACKET_DATA_BYTES])),
    others=st.sampled_from([0, 1, 7, 1000]),
)
def test_any_bytes_arrive_whole_whatever_windows_and_packets_the_agent_asks_for(
    sizes: list[int], window: int, packet: int, others: int
) -> None:
    """All bytes arrive in order and once, for any pieces, windows, packet sizes and numbers of concurrent pumps."""
    offsets = [sum(sizes[:number]) % MIB for number in range(len(sizes))]
    pieces = [CONTENT[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]

    async def run() -> bytes:
        async with open_channel_pair(window, packet) as pair:
            pair.transport.bulk.pumps += others
            return await pair.carried(*pieces)

    assert asyncio.run(run()) == b"".join(pieces)


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 400 * KIB)), min_size=1, max_size=8),
    window=st.integers(8 * KIB, 3 * MIB),
)
def test_writes_and_bulk_sends_keep_their_order(steps: list[tuple[bool, int]], window: int) -> None:
    """Writes and bulk sends alternate, as heads and bodies do, and a bulk send stops at its limit."""
    pieces = [CONTENT[index * KIB :][:size] for index, (_, size) in enumerate(steps)]

    async def send(pair: ChannelPair) -> None:
        for (in_bulk, size), piece in zip(steps, pieces, strict=True):
            if in_bulk:
                assert await pair.ours.send_from(pair.source.stream, size, lambda _: None) == size
            else:
                await pair.ours.write(piece)
        pair.ours.write_eof()

    async def run() -> bytes:
        async with open_channel_pair(window) as pair, asyncio.TaskGroup() as tasks:
            bodies = [piece for (in_bulk, _), piece in zip(steps, pieces, strict=True) if in_bulk]
            tasks.create_task(pair.source.send(*bodies, end=False), name="source")
            tasks.create_task(send(pair), name="send")
            return await pair.reader.read()

    assert asyncio.run(run()) == b"".join(pieces)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
async def test_both_gcm_ciphers_use_the_fast_path(cipher: str) -> None:
    """With either AES-GCM cipher, all data is sent past asyncssh."""
    async with open_channel_pair(encryption_algs=[cipher]) as pair:
        assert await pair.carried(CONTENT) == CONTENT
        assert sum(pair.bulk) == len(CONTENT)


async def test_another_cipher_goes_through_asyncssh() -> None:
    """With a cipher other than AES-GCM, asyncssh sends everything, and everything arrives."""
    async with open_channel_pair(encryption_algs=["aes128-ctr"]) as pair:
        assert await pair.carried(CONTENT) == CONTENT
        assert pair.bulk == []


@pytest.mark.usefixtures("unverified_asyncssh")
async def test_with_an_unverified_release_data_goes_through_asyncssh() -> None:
    """Without the fast path, asyncssh buffers at most one piece while the agent's window is closed."""
    async with open_channel_pair(window=64 * KIB) as pair, asyncio.TaskGroup() as tasks:
        pair.reader.channel.pause_reading()
        tasks.create_task(pair.source.send(CONTENT), name="source")
        sending = tasks.create_task(pair.send_all(), name="send")
        await until(pair.chan.get_write_buffer_size)
        assert pair.chan.get_write_buffer_size() <= PACKET_DATA_BYTES
        pair.reader.channel.resume_reading()
        assert await pair.reader.read() == CONTENT
        assert await sending == len(CONTENT)
        assert pair.bulk == []


@pytest.mark.parametrize("side", ["ours", "the agent's"])
async def test_key_exchanges_in_mid_stream_lose_nothing(side: str) -> None:
    """Key exchanges started by either side while data is in flight lose nothing; the fast path uses the new keys."""
    async with open_channel_pair(**({} if side == "ours" else {"rekey_bytes": 100_000})) as pair:
        if side == "ours":
            pair.conn._rekey_bytes = 300_000
        ciphers = {id(pair.conn._send_encryption): pair.conn._send_encryption}
        pair.writer.write(CONTENT[:MIB])  # the agent counts what it sends itself
        async with asyncio.TaskGroup() as tasks:
            carrying = tasks.create_task(pair.carried(CONTENT[:MIB], CONTENT[MIB:]), name="carry")
            got = b""
            while len(got) < MIB:
                got += await pair.ours.read()
                ciphers[id(pair.conn._send_encryption)] = pair.conn._send_encryption

        assert carrying.result() == CONTENT
        assert got == CONTENT[:MIB]
        ciphers[id(pair.conn._send_encryption)] = pair.conn._send_encryption
        assert len(ciphers) > 1
        assert sum(pair.bulk) > len(CONTENT) // 2


async def test_many_channels_share_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight concurrent pumps on one connection, with key exchanges meanwhile, each deliver their own bytes."""
    async with open_channel_pair() as pair:
        pair.conn._rekey_bytes = 3 * MIB
        arrived: asyncio.Queue[ForwardedChannel] = asyncio.Queue()

        def started(channel: ForwardedChannel) -> None:
            arrived.put_nowait(channel)

        listener = next(iter(pair.conn._remote_listeners))
        monkeypatch.setattr(ForwardedChannel, "session_started", started)
        wanted = [CONTENT[number * KIB :][: 2 * MIB] for number in range(8)]
        ends: list[int] = []

        async def carry(number: int) -> bytes:
            reader, _ = await pair.server.open_connection(*listener)
            ours, source = await arrived.get(), FedStream()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(source.send(wanted[number]), name="source")
                reading = tasks.create_task(reader.read(), name="read")
                await ours.send_from(source.stream, ALL, lambda _: None)
                ends.append(len(ends))
                ours.write_eof()
            source.close()
            return reading.result()

        async with asyncio.TaskGroup() as tasks:
            carrying = [tasks.create_task(carry(number), name=f"carry {number}") for number in range(8)]
        assert sorted(task.result() for task in carrying) == sorted(wanted)


# --- bounds ---


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


# --- ends ---


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
