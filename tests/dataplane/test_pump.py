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

from tests.dataplane.both_ends import ALL, CONTENT, KIB, MIB, Both, Tap, opened
from tests.ssh.ssh_server import until
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.pump import Pump
from tunnelmgr.dataplane.ssh_packets import BATCH, LARGEST

# --- byte for byte ---


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(
        st.one_of(
            st.integers(1, 3 * BATCH * LARGEST),
            st.sampled_from([1, LARGEST - 1, LARGEST, LARGEST + 1, BATCH * LARGEST + 1]),
        ),
        min_size=1,
        max_size=6,
    ),
    window=st.one_of(st.integers(1024, 3 * MIB), st.sampled_from([LARGEST, BATCH * LARGEST])),
    packet=st.one_of(st.integers(512, 64 * KIB), st.sampled_from([LARGEST - 1, LARGEST])),
    others=st.sampled_from([0, 1, 7, 1000]),
)
def test_any_bytes_arrive_whole_whatever_windows_and_packets_the_agent_asks_for(
    sizes: list[int], window: int, packet: int, others: int
) -> None:
    """Come in any pieces, they are read in order, each once, up to the end, however many others share the line."""
    offsets = [sum(sizes[:number]) % MIB for number in range(len(sizes))]
    pieces = [CONTENT[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]

    async def run() -> bytes:
        async with opened(window, packet) as both:
            both.connection._line.pumps += others
            return await both.carried(*pieces)

    assert asyncio.run(run()) == b"".join(pieces)


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 400 * KIB)), min_size=1, max_size=8),
    window=st.integers(8 * KIB, 3 * MIB),
)
def test_writes_and_pours_follow_each_other_in_order(steps: list[tuple[bool, int]], window: int) -> None:
    """As a gate does: a head, a body, a head, a body; a pour takes no more than it was told to."""
    pieces = [CONTENT[index * KIB :][:size] for index, (_, size) in enumerate(steps)]

    async def send(both: Both) -> None:
        for (poured, size), piece in zip(steps, pieces, strict=True):
            if poured:
                assert await both.ours.pour(both.tap.stream, size, lambda _: None) == size
            else:
                await both.ours.write(piece)
        both.ours.write_eof()

    async def run() -> bytes:
        async with opened(window) as both, asyncio.TaskGroup() as tasks:
            bodies = [piece for (poured, _), piece in zip(steps, pieces, strict=True) if poured]
            tasks.create_task(both.tap.send(*bodies, end=False), name="source")
            tasks.create_task(send(both), name="send")
            return await both.reader.read()

    assert asyncio.run(run()) == b"".join(pieces)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"])
async def test_both_gcm_ciphers_go_in_bulk(cipher: str) -> None:
    """It is the bulk path that is tested here, not the other."""
    async with opened(encryption_algs=[cipher]) as both:
        assert await both.carried(CONTENT) == CONTENT
        assert sum(both.bulk) == len(CONTENT)


async def test_another_cipher_goes_through_asyncssh() -> None:
    """Slower, and just as whole."""
    async with opened(encryption_algs=["aes128-ctr"]) as both:
        assert await both.carried(CONTENT) == CONTENT
        assert both.bulk == []


@pytest.mark.usefixtures("unproved")
async def test_a_release_that_is_not_proved_goes_through_asyncssh() -> None:
    """What asyncssh holds until the agent's window opens is a piece at most."""
    async with opened(window=64 * KIB) as both, asyncio.TaskGroup() as tasks:
        both.reader.channel.pause_reading()
        tasks.create_task(both.tap.send(CONTENT), name="source")
        pouring = tasks.create_task(both.pour(), name="pour")
        await until(both.chan.get_write_buffer_size)
        assert both.chan.get_write_buffer_size() <= LARGEST
        both.reader.channel.resume_reading()
        assert await both.reader.read() == CONTENT
        assert await pouring == len(CONTENT)
        assert both.bulk == []


@pytest.mark.parametrize("side", ["ours", "the agent's"])
async def test_key_exchanges_in_mid_stream_lose_nothing(side: str) -> None:
    """Begun by either side, several of them, each with data under way; bulk goes on with the new keys."""
    async with opened(**({} if side == "ours" else {"rekey_bytes": 100_000})) as both:
        if side == "ours":
            both.conn._rekey_bytes = 300_000
        ciphers = {id(both.conn._send_encryption): both.conn._send_encryption}
        both.writer.write(CONTENT[:MIB])  # the agent counts what it sends itself
        async with asyncio.TaskGroup() as tasks:
            carrying = tasks.create_task(both.carried(CONTENT[:MIB], CONTENT[MIB:]), name="carry")
            got = b""
            while len(got) < MIB:
                got += await both.ours.read()
                ciphers[id(both.conn._send_encryption)] = both.conn._send_encryption

        assert carrying.result() == CONTENT
        assert got == CONTENT[:MIB]
        ciphers[id(both.conn._send_encryption)] = both.conn._send_encryption
        assert len(ciphers) > 1
        assert sum(both.bulk) > len(CONTENT) // 2


async def test_many_channels_share_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at once, with key exchanges in between: each gets its own bytes, and none waits for another's end."""
    async with opened() as both:
        both.conn._rekey_bytes = 3 * MIB
        arrived: asyncio.Queue[ForwardedChannel] = asyncio.Queue()

        def started(channel: ForwardedChannel) -> None:
            arrived.put_nowait(channel)

        listener = next(iter(both.conn._remote_listeners))
        monkeypatch.setattr(ForwardedChannel, "session_started", started)
        wanted = [CONTENT[number * KIB :][: 2 * MIB] for number in range(8)]
        ends: list[int] = []

        async def carry(number: int) -> bytes:
            reader, _ = await both.server.open_connection(*listener)
            ours, tap = await arrived.get(), Tap()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(tap.send(wanted[number]), name="source")
                reading = tasks.create_task(reader.read(), name="read")
                await ours.pour(tap.stream, ALL, lambda _: None)
                ends.append(len(ends))
                ours.write_eof()
            tap.close()
            return reading.result()

        async with asyncio.TaskGroup() as tasks:
            carrying = [tasks.create_task(carry(number), name=f"carry {number}") for number in range(8)]
        assert sorted(task.result() for task in carrying) == sorted(wanted)


# --- bounds ---


async def test_an_agent_that_does_not_read_holds_the_source_with_nothing_queued() -> None:
    """What its window has no room for stays in the socket, unread and unsealed, and goes out once it reads."""
    async with opened(window=256 * KIB) as both:
        both.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(both.tap.send(CONTENT), name="source")
            pouring = tasks.create_task(both.pour(), name="pour")
            await until(lambda: both.chan._send_window < 256 * KIB // 8)
            await asyncio.sleep(0.02)
            assert not pouring.done()
            assert both.chan.get_write_buffer_size() == 0

            both.reader.channel.resume_reading()
            assert await both.reader.read() == CONTENT


@pytest.mark.parametrize(("others", "packets"), [(0, 2), (1, 4), (3, 8), (30, 8)])
async def test_bulk_data_goes_on_with_two_packets_alone_and_with_eight_in_company(others: int, packets: int) -> None:
    """Of the window of 2 MiB that OpenSSH's sshd gives: alone, none of it is left waiting; together, no crumbs."""
    async with opened(window=2 * MIB) as both:
        both.connection._line.pumps += others
        both.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(both.tap.send(CONTENT), name="source")
            pouring = tasks.create_task(both.pour(), name="pour")
            await until(lambda: both.chan._send_window < packets * LARGEST)
            sent = sum(both.bulk)
            await opens(both, packets * LARGEST - 1)
            assert sum(both.bulk) == sent
            await opens(both, packets * LARGEST)
            assert sum(both.bulk) > sent
            both.reader.channel.resume_reading()
            assert await both.reader.read() == CONTENT
            assert await pouring == len(CONTENT)


async def opens(both: Both, window: int) -> None:
    """Have the agent's window opened to so many bytes, and let our end see to it."""
    room = window - both.chan._send_window
    both.writer.channel.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(room))
    both.writer.channel._recv_window += room
    await until(lambda: both.chan._send_window != window - room)
    await asyncio.sleep(0.01)


async def test_a_huge_window_that_is_not_read_holds_no_more_than_a_batch() -> None:
    """The socket's own pace holds the source, and what it did not take is one batch at most."""
    async with opened(window=1 << 31) as both, asyncio.TaskGroup() as tasks:
        both.server._transport.pause_reading()
        feeding = tasks.create_task(both.tap.send(*[CONTENT] * 16), name="source")
        pouring = tasks.create_task(both.pour(), name="pour")
        await until(both.connection._line.get_write_buffer_size)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert both.connection._line.get_write_buffer_size() <= BATCH * (LARGEST + 64)
        feeding.cancel()
        pouring.cancel()
        both.server._transport.resume_reading()


async def test_other_work_has_its_turn_between_two_batches() -> None:
    """A large body does not keep the loop for longer than a batch takes."""
    turns = [0]

    async def count() -> None:
        while not done.is_set():
            turns.append(turns[-1] + 1)
            await asyncio.sleep(0)

    done, at = asyncio.Event(), []
    async with opened(window=8 * MIB) as both, asyncio.TaskGroup() as tasks:
        tasks.create_task(both.tap.send(CONTENT), name="source")
        tasks.create_task(count(), name="other")
        await both.ours.pour(both.tap.stream, len(CONTENT), lambda _: at.append(turns[-1]))
        done.set()
    assert all(later > earlier for earlier, later in pairwise(at))


async def test_a_pour_waits_for_what_others_have_written() -> None:
    """A batch goes out only on a line that has nothing unsent: packets must not overtake each other."""
    async with opened(window=8 * MIB) as both, asyncio.TaskGroup() as tasks:
        both.server._transport.pause_reading()
        line = both.connection._line
        both.chan.set_write_buffer_limits(1 << 30)
        while line.idle():
            both.chan.write(CONTENT[:MIB])
        before = list(both.bulk)
        tasks.create_task(both.tap.send(b"and then this"), name="source")
        pouring = tasks.create_task(both.pour(), name="pour")
        await asyncio.sleep(0.02)
        assert both.bulk == before
        both.server._transport.resume_reading()
        assert (await both.reader.read()).endswith(CONTENT[:MIB] + b"and then this")
        assert await pouring == len(b"and then this")


# --- ends ---


async def test_a_source_that_ends_early_says_how_far_it_came() -> None:
    """Whoever asked for more knows that it is not whole."""
    async with opened() as both, asyncio.TaskGroup() as tasks:
        tasks.create_task(both.tap.send(CONTENT[:100_000]), name="source")
        assert await both.ours.pour(both.tap.stream, 200_000, lambda _: None) == 100_000


async def test_a_source_that_breaks_is_an_error() -> None:
    """A broken body is not mistaken for a short one."""
    async with opened() as both:
        both.tap.feed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        both.tap.feed.close()
        with pytest.raises(ConnectionError):
            await both.pour()


async def test_a_pour_counts_as_it_goes() -> None:
    """Status shows a pull that is under way; the agent's allowance is credited too."""
    sizes: list[int] = []
    async with opened(window=8 * MIB) as both, asyncio.TaskGroup() as tasks:
        tasks.create_task(both.tap.send(CONTENT), name="source")
        await both.ours.pour(both.tap.stream, len(CONTENT), sizes.append)
    assert sum(sizes) == len(CONTENT)
    assert len(sizes) > 3


async def fails(both: Both) -> bool:
    """Pour until it fails."""
    try:
        await both.pour()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("end", ["the agent's close", "an abort of ours", "a lost connection", "a cut line"])
async def test_every_end_wakes_a_pour_that_waits_for_the_window(end: str) -> None:
    """As a reset, at once; nothing waits for ever, and the source is heeded no more."""
    async with opened(window=64 * KIB) as both:
        both.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            feeding = tasks.create_task(both.tap.send(CONTENT), name="source")
            pouring = tasks.create_task(fails(both), name="pour")
            await until(lambda: both.chan._send_window < 64 * KIB // 8)
            match end:
                case "the agent's close":
                    both.writer.channel.abort()
                case "an abort of ours":
                    both.ours.abort()
                case "a lost connection":
                    both.connection.abort()
                case _:
                    both.server.abort()
            assert await pouring
            feeding.cancel()
        assert both.tap.stream._reader is None
        with pytest.raises(ConnectionError):
            await both.pour()


async def test_a_pour_that_is_cancelled_reads_no_more() -> None:
    """Revocation: what the source still has stays there."""
    async with opened(window=64 * KIB) as both:
        both.reader.channel.pause_reading()
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(both.tap.send(CONTENT), name="source")
            pouring = tasks.create_task(both.pour(), name="pour")
            await until(lambda: both.chan._send_window < 64 * KIB // 8)
            sent = sum(both.bulk)
            pouring.cancel()
            await asyncio.sleep(0)
            both.reader.channel.resume_reading()
            await asyncio.sleep(0.05)
            feeding.cancel()
        assert sum(both.bulk) == sent


async def test_a_fault_in_a_step_is_raised_by_the_pour(monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens in a callback of the loop's, where nobody else would hear of it."""

    def broken(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(Pump, "_go_on", broken)
    async with opened() as both:
        both.tap.feed.send(b"x")
        with pytest.raises(RuntimeError, match="a fault"):
            await both.pour()


async def test_a_half_closed_agent_still_gets_all() -> None:
    """Its end of input is no end of ours, and our end comes after the last byte."""
    async with opened() as both:
        both.writer.write_eof()
        assert await both.ours.read() == b""
        assert await both.carried(CONTENT) == CONTENT


@pytest.mark.parametrize("proved", [True, False])
async def test_a_key_exchange_that_never_ends_lets_no_more_than_a_piece_out(
    proved: bool, request: pytest.FixtureRequest
) -> None:
    """What is written meanwhile waits inside asyncssh without a bound; so the source waits once a piece does."""
    if not proved:
        request.getfixturevalue("unproved")
    async with opened() as both, asyncio.TaskGroup() as tasks:
        both.server._transport.pause_reading()
        both.conn._send_kexinit()  # which the server does not answer
        both.conn._kexinit_sent = True
        feeding = tasks.create_task(both.tap.send(CONTENT), name="source")
        pouring = tasks.create_task(both.pour(), name="pour")
        await until(lambda: both.connection._line.exchanging_keys)
        await asyncio.sleep(0.05)
        held = [len(b"".join(parts)) for _, parts in both.conn._deferred_packets]
        assert (len(held), max(held) <= LARGEST + 16) == (1, True)
        assert both.bulk == []

        both.server._transport.resume_reading()
        assert await both.reader.read() == CONTENT
        assert await pouring == len(CONTENT)
        assert feeding.done()
