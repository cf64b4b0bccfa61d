"""Bulk data from a socket to the agent: complete and in order, for all windows, packet sizes and key exchanges."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.channel_pair import ALL, CONTENT, KIB, MIB, ChannelPair, FedStream, open_channel_pair
from tests.until import until
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.ssh_packets import BATCH_PACKETS, PACKET_DATA_BYTES


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
