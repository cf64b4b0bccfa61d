"""Bulk data from a socket to the agent: byte for byte, whatever the agent's windows, packets and key exchanges."""

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
from tests.ssh.ssh_server import until
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
    """Come in any pieces, they are read in order, each once, up to the end, however many others share the transport."""
    offsets = [sum(sizes[:number]) % MIB for number in range(len(sizes))]
    pieces = [CONTENT[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]

    async def run() -> bytes:
        async with open_channel_pair(window, packet) as pair:
            pair.connection._transport.bulk.pumps += others
            return await pair.carried(*pieces)

    assert asyncio.run(run()) == b"".join(pieces)


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 400 * KIB)), min_size=1, max_size=8),
    window=st.integers(8 * KIB, 3 * MIB),
)
def test_writes_and_pours_follow_each_other_in_order(steps: list[tuple[bool, int]], window: int) -> None:
    """As a gate does: a head, a body, a head, a body; a pour takes no more than it was told to."""
    pieces = [CONTENT[index * KIB :][:size] for index, (_, size) in enumerate(steps)]

    async def send(pair: ChannelPair) -> None:
        for (poured, size), piece in zip(steps, pieces, strict=True):
            if poured:
                assert await pair.ours.send_from(pair.source.stream, size, lambda _: None) == size
            else:
                await pair.ours.write(piece)
        pair.ours.write_eof()

    async def run() -> bytes:
        async with open_channel_pair(window) as pair, asyncio.TaskGroup() as tasks:
            bodies = [piece for (poured, _), piece in zip(steps, pieces, strict=True) if poured]
            tasks.create_task(pair.source.send(*bodies, end=False), name="source")
            tasks.create_task(send(pair), name="send")
            return await pair.reader.read()

    assert asyncio.run(run()) == b"".join(pieces)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
async def test_both_gcm_ciphers_go_in_bulk(cipher: str) -> None:
    """It is the bulk path that is tested here, not the other."""
    async with open_channel_pair(encryption_algs=[cipher]) as pair:
        assert await pair.carried(CONTENT) == CONTENT
        assert sum(pair.bulk) == len(CONTENT)


async def test_another_cipher_goes_through_asyncssh() -> None:
    """Slower, and just as whole."""
    async with open_channel_pair(encryption_algs=["aes128-ctr"]) as pair:
        assert await pair.carried(CONTENT) == CONTENT
        assert pair.bulk == []


@pytest.mark.usefixtures("unverified_asyncssh")
async def test_a_release_that_is_not_proved_goes_through_asyncssh() -> None:
    """What asyncssh holds until the agent's window opens is a piece at most."""
    async with open_channel_pair(window=64 * KIB) as pair, asyncio.TaskGroup() as tasks:
        pair.reader.channel.pause_reading()
        tasks.create_task(pair.source.send(CONTENT), name="source")
        pouring = tasks.create_task(pair.pour(), name="pour")
        await until(pair.chan.get_write_buffer_size)
        assert pair.chan.get_write_buffer_size() <= PACKET_DATA_BYTES
        pair.reader.channel.resume_reading()
        assert await pair.reader.read() == CONTENT
        assert await pouring == len(CONTENT)
        assert pair.bulk == []


@pytest.mark.parametrize("side", ["ours", "the agent's"])
async def test_key_exchanges_in_mid_stream_lose_nothing(side: str) -> None:
    """Begun by either side, several of them, each with data under way; bulk goes on with the new keys."""
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
    """Eight at once, with key exchanges in between: each gets its own bytes, and none waits for another's end."""
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


async def test_an_agent_that_does_not_read_holds_the_source_with_nothing_queued() -> None:
    """What its window has no room for stays in the socket, unread and unsealed, and goes out once it reads."""
    async with open_channel_pair(window=256 * KIB) as pair:
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pair.source.send(CONTENT), name="source")
            pouring = tasks.create_task(pair.pour(), name="pour")
            await until(lambda: pair.chan._send_window < 256 * KIB // 8)
            await asyncio.sleep(0.02)
            assert not pouring.done()
            assert pair.chan.get_write_buffer_size() == 0

            pair.reader.channel.resume_reading()
            assert await pair.reader.read() == CONTENT


@pytest.mark.parametrize(("others", "packets"), [(0, 2), (1, 4), (3, 8), (30, 8)])
async def test_bulk_data_goes_on_with_two_packets_alone_and_with_eight_in_company(others: int, packets: int) -> None:
    """Of the window of 2 MiB that OpenSSH's sshd gives: alone, none of it is left waiting; together, no crumbs."""
    async with open_channel_pair(window=2 * MIB) as pair:
        pair.connection._transport.bulk.pumps += others
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pair.source.send(CONTENT), name="source")
            pouring = tasks.create_task(pair.pour(), name="pour")
            await until(lambda: pair.chan._send_window < packets * PACKET_DATA_BYTES)
            sent = sum(pair.bulk)
            await opens(pair, packets * PACKET_DATA_BYTES - 1)
            assert sum(pair.bulk) == sent
            await opens(pair, packets * PACKET_DATA_BYTES)
            assert sum(pair.bulk) > sent
            pair.reader.channel.resume_reading()
            assert await pair.reader.read() == CONTENT
            assert await pouring == len(CONTENT)


async def opens(pair: ChannelPair, window: int) -> None:
    """Have the agent's window opened to so many bytes, and let our end see to it."""
    room = window - pair.chan._send_window
    pair.writer.channel.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(room))
    pair.writer.channel._recv_window += room
    await until(lambda: pair.chan._send_window != window - room)
    await asyncio.sleep(0.01)


async def test_a_huge_window_that_is_not_read_holds_no_more_than_a_batch() -> None:
    """The socket's own pace holds the source, and what it did not take is one batch at most."""
    async with open_channel_pair(window=1 << 31) as pair, asyncio.TaskGroup() as tasks:
        pair.server._transport.pause_reading()
        feeding = tasks.create_task(pair.source.send(*[CONTENT] * 16), name="source")
        pouring = tasks.create_task(pair.pour(), name="pour")
        await until(pair.connection._transport.get_write_buffer_size)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert pair.connection._transport.get_write_buffer_size() <= BATCH_PACKETS * (PACKET_DATA_BYTES + 64)
        feeding.cancel()
        pouring.cancel()
        pair.server._transport.resume_reading()


async def test_other_work_has_its_turn_between_two_batches() -> None:
    """A large body does not keep the loop for longer than a batch takes."""
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


async def test_a_pour_waits_for_what_others_have_written() -> None:
    """A batch goes out only on a line that has nothing unsent: packets must not overtake each other."""
    async with open_channel_pair(window=8 * MIB) as pair, asyncio.TaskGroup() as tasks:
        pair.server._transport.pause_reading()
        transport = pair.connection._transport
        pair.chan.set_write_buffer_limits(1 << 30)
        while transport.bulk.idle():
            pair.chan.write(CONTENT[:MIB])
        before = list(pair.bulk)
        tasks.create_task(pair.source.send(b"and then this"), name="source")
        pouring = tasks.create_task(pair.pour(), name="pour")
        await asyncio.sleep(0.02)
        assert pair.bulk == before
        pair.server._transport.resume_reading()
        assert (await pair.reader.read()).endswith(CONTENT[:MIB] + b"and then this")
        assert await pouring == len(b"and then this")


# --- ends ---


async def test_a_source_that_ends_early_says_how_far_it_came() -> None:
    """Whoever asked for more knows that it is not whole."""
    async with open_channel_pair() as pair, asyncio.TaskGroup() as tasks:
        tasks.create_task(pair.source.send(CONTENT[:100_000]), name="source")
        assert await pair.ours.send_from(pair.source.stream, 200_000, lambda _: None) == 100_000


async def test_a_source_that_breaks_is_an_error() -> None:
    """A broken body is not mistaken for a short one."""
    async with open_channel_pair() as pair:
        pair.source.feed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.source.feed.close()
        with pytest.raises(ConnectionError):
            await pair.pour()


async def test_a_pour_counts_as_it_goes() -> None:
    """Status shows a pull that is under way; the agent's allowance is credited too."""
    sizes: list[int] = []
    async with open_channel_pair(window=8 * MIB) as pair, asyncio.TaskGroup() as tasks:
        tasks.create_task(pair.source.send(CONTENT), name="source")
        await pair.ours.send_from(pair.source.stream, len(CONTENT), sizes.append)
    assert sum(sizes) == len(CONTENT)
    assert len(sizes) > 3


async def fails(pair: ChannelPair) -> bool:
    """Pour until it fails."""
    try:
        await pair.pour()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("end", ["the agent's close", "an abort of ours", "a lost connection", "a cut line"])
async def test_every_end_wakes_a_pour_that_waits_for_the_window(end: str) -> None:
    """As a reset, at once; nothing waits for ever, and the source is heeded no more."""
    async with open_channel_pair(window=64 * KIB) as pair:
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            feeding = tasks.create_task(pair.source.send(CONTENT), name="source")
            pouring = tasks.create_task(fails(pair), name="pour")
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
            assert await pouring
            feeding.cancel()
        assert pair.source.stream._reader is None
        with pytest.raises(ConnectionError):
            await pair.pour()


async def test_a_pour_that_is_cancelled_reads_no_more() -> None:
    """Revocation: what the source still has stays there."""
    async with open_channel_pair(window=64 * KIB) as pair:
        pair.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(pair.source.send(CONTENT), name="source")
            pouring = tasks.create_task(pair.pour(), name="pour")
            await until(lambda: pair.chan._send_window < 64 * KIB // 8)
            sent = sum(pair.bulk)
            pouring.cancel()
            await asyncio.sleep(0)
            pair.reader.channel.resume_reading()
            await asyncio.sleep(0.05)
            feeding.cancel()
        assert sum(pair.bulk) == sent


async def test_a_fault_in_a_step_is_raised_by_the_pour(monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens in a callback of the loop's, where nobody else would hear of it."""

    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Pump, "_continue", broken)
    async with open_channel_pair() as pair:
        pair.source.feed.send(b"x")
        with pytest.raises(RuntimeError, match="a fault"):
            await pair.pour()


async def test_a_half_closed_agent_still_gets_all() -> None:
    """Its end of input is no end of ours, and our end comes after the last byte."""
    async with open_channel_pair() as pair:
        pair.writer.write_eof()
        assert await pair.ours.read() == b""
        assert await pair.carried(CONTENT) == CONTENT


@pytest.mark.parametrize("proved", [True, False])
async def test_a_key_exchange_that_never_ends_lets_no_more_than_a_piece_out(
    proved: bool, request: pytest.FixtureRequest
) -> None:
    """What is written meanwhile waits inside asyncssh without a bound; so the source waits once a piece does."""
    if not proved:
        request.getfixturevalue("unverified_asyncssh")
    async with open_channel_pair() as pair, asyncio.TaskGroup() as tasks:
        pair.server._transport.pause_reading()
        pair.conn._send_kexinit()  # which the server does not answer
        pair.conn._kexinit_sent = True
        feeding = tasks.create_task(pair.source.send(CONTENT), name="source")
        pouring = tasks.create_task(pair.pour(), name="pour")
        await until(lambda: pair.connection._transport.exchanging_keys)
        await asyncio.sleep(0.05)
        held = [len(b"".join(parts)) for _, parts in pair.conn._deferred_packets]
        assert (len(held), max(held) <= PACKET_DATA_BYTES + 16) == (1, True)
        assert pair.bulk == []

        pair.server._transport.resume_reading()
        assert await pair.reader.read() == CONTENT
        assert await pouring == len(CONTENT)
        assert feeding.done()
