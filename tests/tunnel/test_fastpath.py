"""What is assumed of asyncssh: that its private parts are what we take them for, and end up as it would leave them.

These are the contract tests: a release of asyncssh is proved once they and `test_pump.py` pass with it.
"""

import asyncio
import os
import struct

import asyncssh
import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption

from tests.tunnel.both_ends import CONTENT, KIB, Both, opened
from tests.tunnel.ssh_server import until
from tunnelmgr.tunnel import fastpath
from tunnelmgr.tunnel.fastpath import PROVED, account, await_window, exchanges_keys, heard, outlet, window
from tunnelmgr.tunnel.packets import ADJUST_SIZE, LARGEST, Batch

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
    ("chan", "_send_pktsize", LARGEST - 1),
    ("chan", "_conn", None),
]
"""States in which only asyncssh may send."""
DEAF = [
    ("_auth_final", False),
    ("_kex", object()),
    ("_kex_complete", False),
    ("_inpbuf", b"the beginning of a packet"),
    ("_recv_handler", lambda: False),
    ("_decompressor", object()),
    ("_recv_encryption", None),
]
"""States in which only asyncssh may read."""


def test_this_release_of_asyncssh_is_proved() -> None:
    """A new one is added to `PROVED` once all of this file passes with it."""
    if os.environ.get("PROVING"):
        pytest.skip("this run is to find out")
    assert asyncssh.__version__ in PROVED


async def test_every_private_attribute_is_there_with_its_type() -> None:
    """What `fastpath` reads and writes means what it assumes."""
    async with opened() as both:
        conn, chan = both.conn, both.chan
        for encryption in (conn._send_encryption, conn._recv_encryption):
            assert type(encryption) is GCMEncryption
            assert type(encryption._cipher) is GCMCipher
            assert (type(encryption._cipher._key), type(encryption._cipher._iv)) == (bytes, bytes)
            assert len(encryption._cipher._iv) == 12
        assert (conn._auth_complete, conn._auth_final, conn._kex_complete) == (True, True, True)
        assert (conn._kex, conn._deferred_packets, conn._inpbuf) == (None, [], b"")
        assert (conn._compressor, conn._decompressor) == (None, None)
        assert conn._recv_handler == conn._recv_pkthdr
        for counter in (conn._send_seq, conn._recv_seq, conn._rekey_bytes_sent, conn._rekey_bytes):
            assert type(counter) is int
        for counter in (chan._send_window, chan._send_chan, chan._send_pktsize):
            assert type(counter) is int
        assert type(conn._rekey_seconds) in {int, float}
        assert type(conn._rekey_time) is float
        assert (chan._send_state, chan._recv_state) == ("open", "open")
        assert (chan._send_buf, chan._encoding, chan._send_paused) == ([], None, False)
        assert chan._conn is conn
        assert conn._channels[chan._recv_chan] is chan
        assert (conn._send_enchdrlen, conn._send_blocksize) == (1, 16)


# --- sending ---


def sent_by_us(both: Both, data: bytes) -> None:
    """Send as `Pump` does."""
    way, batch = outlet(both.chan), Batch()
    assert way is not None
    left = data
    for place in batch.room(len(data)):
        piece, left = left[: len(place)], left[len(place) :]
        place[: len(piece)] = piece
    account(both.chan, len(data))
    both.conn._send(batch.buffer[: batch.seal(way.seal, way.channel, len(data))])


async def test_a_batch_leaves_the_connection_as_asyncssh_itself_would() -> None:
    """Counter, sequence number, window, and bytes towards the next key exchange move by the same steps."""
    async with opened() as both:

        def state() -> tuple[int, int, int, int]:
            cipher = both.conn._send_encryption._cipher
            counts = int.from_bytes(cipher._iv[4:], "big"), both.conn._send_seq
            return (*counts, both.conn._rekey_bytes_sent, both.chan._send_window)

        def moved(before: tuple[int, ...]) -> list[int]:
            return [now - then for now, then in zip(state(), before, strict=True)]

        before = state()
        both.chan.write(CONTENT[:LARGEST])
        by_asyncssh = moved(before)
        before = state()
        sent_by_us(both, CONTENT[:LARGEST])
        by_us = moved(before)
        got = await both.reader.readexactly(2 * LARGEST)

    ignore = [1, 1, 16, 0]  # asyncssh puts an IGNORE of one block before each packet
    assert by_us == [step - more for step, more in zip(by_asyncssh, ignore, strict=True)]
    assert got == 2 * CONTENT[:LARGEST]


async def test_asyncssh_and_we_may_take_turns() -> None:
    """Each goes on where the other stopped."""
    async with opened() as both:
        for turn in range(10):
            piece = CONTENT[turn * 1000 : (turn + 1) * 1000]
            if turn % 2:
                both.chan.write(piece)
            else:
                sent_by_us(both, piece)
        assert await both.reader.readexactly(10_000) == CONTENT[:10_000]


@pytest.mark.parametrize(("whose", "attribute", "value"), AT_ODDS)
async def test_whatever_is_not_as_expected_is_left_to_asyncssh(whose: str, attribute: str, value: object) -> None:
    """There is no way out past it."""
    async with opened() as both:
        if attribute == "_rekey_seconds":
            both.conn._rekey_time = 0.0
        assert outlet(both.chan) is not None or attribute == "_rekey_seconds"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(getattr(both, whose), attribute, value)
            assert outlet(both.chan) is None


async def test_in_a_release_that_is_not_proved_nothing_goes_past_asyncssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither out nor in."""
    async with opened() as both:
        monkeypatch.setattr(fastpath, "_USABLE", False)
        assert outlet(both.chan) is None
        assert heard(both.conn, sealed_adjust(both, 1)) == 0


# --- hearing ---


def sealed(both: Both, *payloads: bytes) -> bytes:
    """Return packets under the seals that come next from the agent; asyncssh's own code makes them."""
    cipher, wire = both.conn._recv_encryption._cipher, b""
    agents = GCMCipher("aes128-gcm", cipher._key, cipher._iv)
    for payload in payloads:
        padding = 16 - (1 + len(payload)) % 16
        padding += 16 if padding < 4 else 0
        packet = bytes([padding]) + payload + os.urandom(padding)
        body, tag = agents.encrypt_and_sign(len(packet).to_bytes(4, "big"), packet)
        wire += body + tag
    return wire


def sealed_adjust(both: Both, room: int, channel: int | None = None) -> bytes:
    """Return a window adjust under the seal that comes next from the agent."""
    return sealed(both, struct.pack(">BII", 93, both.chan._recv_chan if channel is None else channel, room))


async def test_a_window_adjust_leaves_the_connection_as_asyncssh_itself_would() -> None:
    """Counter, sequence number and window move by the same steps."""
    async with opened() as both:

        def state() -> tuple[int, int, int]:
            cipher = both.conn._recv_encryption._cipher
            return int.from_bytes(cipher._iv[4:], "big"), both.conn._recv_seq, both.chan._send_window

        def moved(before: tuple[int, ...]) -> list[int]:
            return [now - then for now, then in zip(state(), before, strict=True)]

        before = state()
        both.conn.data_received(sealed_adjust(both, 1000))
        by_asyncssh = moved(before)
        before = state()
        assert heard(both.conn, sealed_adjust(both, 1000)) == ADJUST_SIZE
        by_us = moved(before)

    assert by_us == by_asyncssh == [1, 1, 1000]


async def test_what_follows_an_adjust_reaches_asyncssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adjust and the agent's data in one piece: each is worked off by whom it is for, in order."""
    async with opened() as both:
        before = window(both.chan)
        number = both.chan._recv_chan
        wire = sealed(both, struct.pack(">BII", 93, number, 1000), struct.pack(">BII4s", 94, number, 4, b"data"))
        monkeypatch.setattr(both.connection._line._stream, "receive", lambda _: wire)

        both.connection._line._read()

        assert window(both.chan) == before + 1000
        assert await both.ours.read() == b"data"


@pytest.mark.parametrize(("attribute", "value"), DEAF)
async def test_what_arrives_in_any_other_state_is_left_to_asyncssh(attribute: str, value: object) -> None:
    """Nothing is read and nothing is changed."""
    async with opened() as both:
        wire = sealed_adjust(both, 1)
        before = both.conn._recv_seq, both.chan._send_window

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(both.conn, attribute, value)
            assert heard(both.conn, wire) == 0

        assert (both.conn._recv_seq, both.chan._send_window) == before
        assert heard(both.conn, wire) == len(wire)


async def test_an_adjust_of_a_channel_that_is_not_open_is_left_to_asyncssh() -> None:
    """It knows what to say to that."""
    async with opened() as both:
        assert heard(both.conn, sealed_adjust(both, 1, channel=99)) == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(both.chan, "_recv_state", "closed")
            assert heard(both.conn, sealed_adjust(both, 1)) == 0


async def test_something_else_than_asyncssh_is_not_heard_for() -> None:
    """The line also carries other protocols, in tests."""
    assert heard(asyncio.Protocol(), bytes(36)) == 0
    assert not exchanges_keys(asyncio.Protocol())


# --- waiting ---


async def test_a_channel_that_waits_for_its_window_is_told_when_it_opens() -> None:
    """Although asyncssh holds nothing of it, which it takes for a reason not to."""
    async with opened(window=64 * KIB) as both:
        assert window(both.chan) == 64 * KIB
        both.reader.channel.pause_reading()
        sent_by_us(both, CONTENT[: 64 * KIB])
        assert window(both.chan) == 0
        both.ours.pause_writing()
        await_window(both.chan)

        both.reader.channel.resume_reading()
        await until(both.ours._window.is_set)
        assert window(both.chan) > 0
