"""Packets under AES-GCM: asyncssh's own code opens what is sealed here, and the other way round."""

import os
import struct

import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.dataplane import ssh_packets as ours
from tunnelmgr.dataplane.ssh_packets import (
    BATCH_PACKETS,
    PACKET_DATA_BYTES,
    Batch,
    Opener,
    Seal,
    channel_data,
    keepalive,
    lengths,
    nonce_after,
    packets,
    whole_packet,
    window_adjust,
)

KEY, NONCE = os.urandom(16), os.urandom(12)
SEAL = Seal(AESGCM(KEY), NONCE)
CONTENT = os.urandom(BATCH_PACKETS * PACKET_DATA_BYTES)


def other_end(key: bytes = KEY, nonce: bytes = NONCE) -> GCMEncryption:
    """Return asyncssh's side of a seal."""
    return GCMEncryption(GCMCipher("aes128-gcm" if len(key) == 16 else "aes256-gcm", key, nonce))


def opened(wire: bytes, encryption: GCMEncryption) -> list[bytes]:
    """Return the payloads of the packets in `wire`, read as asyncssh reads them (RFC 4253, section 6)."""
    payloads = []
    while wire:
        size = 4 + int.from_bytes(wire[:4], "big")
        plain = encryption.decrypt_packet(0, wire[:16], wire[16:size], 4, wire[size : size + 16])
        assert plain is not None
        padding = plain[0]
        assert padding >= 4
        assert len(plain) % 16 == 0
        payloads.append(plain[1:-padding])
        wire = wire[size + 16 :]
    return payloads


def filled(batch: Batch, data: bytes) -> None:
    """Put data into a batch's room, as a socket would."""
    for place in batch.room(BATCH_PACKETS * PACKET_DATA_BYTES):
        piece, data = data[: len(place)], data[len(place) :]
        place[: len(piece)] = piece


# --- sealing ---


@settings(deadline=None)
@given(
    count=st.one_of(
        st.integers(1, BATCH_PACKETS * PACKET_DATA_BYTES),
        st.sampled_from([1, PACKET_DATA_BYTES - 1, PACKET_DATA_BYTES, PACKET_DATA_BYTES + 1]),
    )
)
def test_sealed_data_opens_in_order(count: int) -> None:
    """Any number of bytes makes the fewest possible packets, each with the next nonce."""
    batch, encryption = Batch(), other_end()
    filled(batch, CONTENT[:count])

    end = batch.seal(SEAL, 7, count)

    payloads = opened(bytes(batch.buffer[:end]), encryption)
    heads = [struct.unpack(">BII", payload[:9]) for payload in payloads]
    assert [head[:2] for head in heads] == [(94, 7)] * packets(count)
    assert [head[2] for head in heads] == [len(payload) - 9 for payload in payloads]
    assert b"".join(payload[9:] for payload in payloads) == CONTENT[:count]
    assert encryption._cipher._iv == nonce_after(SEAL.nonce, packets(count))
    assert lengths(count) == end - packets(count) * (4 + 16)


@pytest.mark.parametrize("size", [16, 32])
def test_a_batch_can_be_reused(size: int) -> None:
    """Earlier content of a batch leaves no trace in what is sealed next, with either key length."""
    key, batch = os.urandom(size), Batch()
    encryption, seal = other_end(key), Seal(AESGCM(key), NONCE)
    for count in (BATCH_PACKETS * PACKET_DATA_BYTES, 5, PACKET_DATA_BYTES + 1, BATCH_PACKETS * PACKET_DATA_BYTES):
        filled(batch, CONTENT[:count])
        end = batch.seal(seal, 1, count)
        seal = Seal(seal.cipher, nonce_after(seal.nonce, packets(count)))
        assert b"".join(payload[9:] for payload in opened(bytes(batch.buffer[:end]), encryption)) == CONTENT[:count]


def test_the_nonces_counter_wraps_and_leaves_its_fixed_part() -> None:
    """The 64-bit invocation counter wraps, and the fixed field stays (RFC 5647, section 7.1)."""
    assert nonce_after(b"fix!" + b"\xff" * 8, 2) == b"fix!" + b"\0" * 7 + b"\1"


def test_room_is_full_packets_or_a_part_of_one() -> None:
    """The room never exceeds the limit."""
    batch = Batch()
    assert [len(place) for place in batch.room(10)] == [10]
    assert [len(place) for place in batch.room(PACKET_DATA_BYTES)] == [PACKET_DATA_BYTES]
    assert [len(place) for place in batch.room(3 * PACKET_DATA_BYTES - 1)] == [PACKET_DATA_BYTES] * 2
    assert [len(place) for place in batch.room(1 << 40)] == [PACKET_DATA_BYTES] * BATCH_PACKETS


def test_fill_copies_at_most_a_batch() -> None:
    """`fill` copies data in order, at most as much as a batch holds."""
    batch, encryption = Batch(), other_end()
    assert batch.fill(memoryview(CONTENT + b"more")) == BATCH_PACKETS * PACKET_DATA_BYTES
    assert batch.fill(memoryview(CONTENT[: PACKET_DATA_BYTES + 5])) == PACKET_DATA_BYTES + 5

    end = batch.seal(SEAL, 1, PACKET_DATA_BYTES + 5)
    assert (
        b"".join(payload[9:] for payload in opened(bytes(batch.buffer[:end]), encryption))
        == CONTENT[: PACKET_DATA_BYTES + 5]
    )


# --- opening ---


def sealed(encryption: GCMEncryption, *payloads: bytes) -> bytes:
    """Return packets as asyncssh or sshd makes them."""
    wire = b""
    for payload in payloads:
        padding = -(1 + len(payload)) % 16
        padding += 16 if padding < 4 else 0
        packet = bytes([padding]) + payload + os.urandom(padding)
        body, tag = encryption.encrypt_packet(0, len(packet).to_bytes(4, "big"), packet)
        wire += body + tag
    return wire


def adjust(channel: int, room: int) -> bytes:
    """Return a window adjust (RFC 4254, section 5.2)."""
    return struct.pack(">BII", 93, channel, room)


def brought(channel: int, data: bytes) -> bytes:
    """Return data of a channel (RFC 4254, section 5.2)."""
    return struct.pack(">BII", 94, channel, len(data)) + data


@given(payloads=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8))
def test_packets_of_asyncssh_are_opened_in_order(payloads: list[bytes]) -> None:
    """Each packet opens with the next nonce, and only after the previous one was accepted."""
    wire, opener = memoryview(sealed(other_end(), *payloads)), Opener(SEAL)
    found = []
    while wire:
        size = whole_packet(wire)
        plain = opener.open(wire[:size])
        assert plain is not None
        assert opener.open(wire[:size]) == plain
        found.append(plain[1 : -plain[0]])
        opener.accept()
        assert opener.open(wire[:size]) is None
        wire = wire[size:]

    assert found == payloads
    assert opener.nonce == nonce_after(SEAL.nonce, len(payloads))


def test_a_modified_packet_does_not_open() -> None:
    """A packet with any modified byte in length, content or tag does not open."""
    wire = sealed(other_end(), adjust(1, 2))
    for place in (0, 5, len(wire) - 1):
        touched = bytearray(wire)
        touched[place] ^= 1
        assert Opener(SEAL).open(memoryview(touched)) is None


def test_the_size_of_a_packet_is_known_with_its_length() -> None:
    """The size of a packet is 0 until its length has arrived."""
    wire = memoryview(sealed(other_end(), adjust(1, 2)))
    assert [whole_packet(wire[:count]) for count in range(4)] == [0, 0, 0, 0]
    assert whole_packet(wire[:4]) == whole_packet(wire) == len(wire)


def plain(payload: bytes, padding: int) -> bytes:
    """Return a packet as it is when opened."""
    return bytes([padding]) + payload + bytes(padding)


def test_adjusts_and_data_are_distinguished() -> None:
    """Window adjusts and data are recognised by message number and exact size."""
    sealed_adjust = plain(adjust(7, 98304), 6)
    came = plain(brought(3, b"data"), 6)

    assert (window_adjust(sealed_adjust), channel_data(sealed_adjust)) == ((7, 98304), None)
    assert (window_adjust(came), channel_data(came)) == (None, (3, b"data"))
    assert channel_data(plain(brought(0xFFFFFFFF, bytes(PACKET_DATA_BYTES)), 6)) == (
        0xFFFFFFFF,
        bytes(PACKET_DATA_BYTES),
    )
    assert channel_data(plain(brought(1, b""), 6)) == (1, b"")


def test_a_keepalive_is_recognised_and_answered_with_a_failure() -> None:
    """OpenSSH's keepalive request is recognised, and the answer is what asyncssh would send."""
    asked = struct.pack(">BI", 98, 7) + b"\0\0\0\x15keepalive@openssh.com"
    failure = ours.sealed(SEAL, ours.failure(9))

    assert keepalive(plain(asked + b"\1", 5)) == 7
    assert keepalive(plain(asked + b"\0", 5)) is None
    assert keepalive(plain(asked + b"\1x", 4)) is None
    assert keepalive(plain(asked + b"\1", 3)) is None
    assert keepalive(plain(b"\x62\0\0\0\7" + b"\0\0\0\4exit\1", 5)) is None
    assert opened(failure, other_end()) == [struct.pack(">BI", 100, 9)]


def test_our_window_adjust_is_valid() -> None:
    """A window adjust sealed here is opened by asyncssh and by `Opener`."""
    wire = ours.sealed(SEAL, ours.adjust(7, 98304))

    assert opened(wire, other_end()) == [adjust(7, 98304)]
    assert window_adjust(Opener(SEAL).open(memoryview(wire)) or b"") == (7, 98304)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(plain(struct.pack(">BI", 2, 0), 10), id="ignore, as long as an adjust"),
        pytest.param(plain(adjust(1, 2) + b"x", 5), id="an adjust with more in it"),
        pytest.param(plain(brought(1, b"data") + b"x", 5), id="data with more behind"),
        pytest.param(plain(struct.pack(">BII", 94, 1, 9) + b"data", 6), id="less data than its length"),
        pytest.param(plain(brought(1, b"data"), 3), id="too little padding"),
        pytest.param(bytes([200]) + brought(1, b"data"), id="more padding than packet"),
    ],
)
def test_any_other_content_is_not_recognised(odd: bytes) -> None:
    """Content that is not exactly an adjust, data or a keepalive is left to asyncssh."""
    assert (window_adjust(odd), channel_data(odd)) == (None, None)
