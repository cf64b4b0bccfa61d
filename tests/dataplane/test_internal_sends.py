"""Contract tests: what is sent past asyncssh leaves its private attributes as its own sends would."""

import pytest

from tests.dataplane.channel_pair import CONTENT, KIB, ChannelPair, open_channel_pair
from tests.until import until
from tunnelmgr.dataplane.asyncssh_internals import account, await_window, send_state, send_window
from tunnelmgr.dataplane.ssh_packets import PACKET_DATA_BYTES, Batch

AT_ODDS = [
    ("conn", "_kex_complete", False),
    ("conn", "_auth_complete", False),
    ("conn", "_deferred_packets", [(94, ())]),
    ("conn", "_compressor", object()),
    ("conn", "_send_encryption", None),
    ("conn", "_rekey_bytes", 0),
    ("conn", "_rekey_seconds", 1),
    ("conn", "_transport", None),
    ("chan", "_send_state", "eof_pending"),
    ("chan", "_send_buf", [(bytearray(b"queued"), None)]),
    ("chan", "_encoding", "utf-8"),
    ("chan", "_send_pktsize", PACKET_DATA_BYTES - 1),
    ("chan", "_conn", None),
]
"""States in which only asyncssh may send."""


def sent_by_us(pair: ChannelPair, data: bytes) -> None:
    """Send data in the way that `Pump` does."""
    way, batch = send_state(pair.chan), Batch()
    assert way is not None
    left = data
    for place in batch.room(len(data)):
        piece, left = left[: len(place)], left[len(place) :]
        place[: len(piece)] = piece
    account(pair.chan, len(data))
    pair.conn._send(batch.buffer[: batch.seal(way.seal, way.channel, len(data))])


async def test_a_batch_leaves_the_connection_as_asyncssh_would() -> None:
    """A batch changes nonce, sequence number, window and key exchange counter by the same amounts as asyncssh."""
    async with open_channel_pair() as pair:

        def state() -> tuple[int, int, int, int]:
            cipher = pair.conn._send_encryption._cipher
            counts = int.from_bytes(cipher._iv[4:], "big"), pair.conn._send_seq
            return (*counts, pair.conn._rekey_bytes_sent, pair.chan._send_window)

        def moved(before: tuple[int, ...]) -> list[int]:
            return [now - then for now, then in zip(state(), before, strict=True)]

        before = state()
        pair.chan.write(CONTENT[:PACKET_DATA_BYTES])
        by_asyncssh = moved(before)
        before = state()
        sent_by_us(pair, CONTENT[:PACKET_DATA_BYTES])
        by_us = moved(before)
        got = await pair.reader.readexactly(2 * PACKET_DATA_BYTES)

    ignore = [1, 1, 16, 0]  # asyncssh puts an IGNORE of one block before each packet
    assert by_us == [step - more for step, more in zip(by_asyncssh, ignore, strict=True)]
    assert got == 2 * CONTENT[:PACKET_DATA_BYTES]


async def test_asyncssh_and_the_fast_path_can_alternate() -> None:
    """Batches and asyncssh's own packets can alternate, and all data arrives in order."""
    async with open_channel_pair() as pair:
        for turn in range(10):
            piece = CONTENT[turn * 1000 : (turn + 1) * 1000]
            if turn % 2:
                pair.chan.write(piece)
            else:
                sent_by_us(pair, piece)
        assert await pair.reader.readexactly(10_000) == CONTENT[:10_000]


@pytest.mark.parametrize(("whose", "attribute", "value"), AT_ODDS)
async def test_in_any_other_state_sending_is_left_to_asyncssh(whose: str, attribute: str, value: object) -> None:
    """`send_state` is None in every state in which only asyncssh may send."""
    async with open_channel_pair() as pair:
        if attribute == "_rekey_seconds":
            pair.conn._rekey_time = 0.0
        assert send_state(pair.chan) is not None or attribute == "_rekey_seconds"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(getattr(pair, whose), attribute, value)
            assert send_state(pair.chan) is None


async def test_a_channel_that_waits_for_its_window_is_resumed() -> None:
    """After `await_window`, asyncssh resumes writing when the window opens, although it has nothing buffered."""
    async with open_channel_pair(window=64 * KIB) as pair:
        assert send_window(pair.chan) == 64 * KIB
        pair.reader.channel.pause_reading()
        sent_by_us(pair, CONTENT[: 64 * KIB])
        assert send_window(pair.chan) == 0
        pair.ours.pause_writing()
        await_window(pair.chan)

        pair.reader.channel.resume_reading()
        await until(pair.ours._send_window_open.is_set)
        assert send_window(pair.chan) > 0
