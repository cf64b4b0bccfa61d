"""Packets under AES-GCM: what we seal, asyncssh's own code opens, and the other way round."""

import os
import struct

import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.tunnel.packets import (
    ADJUST_SIZE,
    BATCH,
    LARGEST,
    Batch,
    Seal,
    lengths,
    opened_adjusts,
    packets,
)

KEY, NONCE = os.urandom(16), os.urandom(12)
CONTENT = os.urandom(BATCH * LARGEST)


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
    for place in batch.room(BATCH * LARGEST):
        piece, data = data[: len(place)], data[len(place) :]
        place[: len(piece)] = piece


# --- sealing ---


@settings(deadline=None)
@given(count=st.one_of(st.integers(1, BATCH * LARGEST), st.sampled_from([1, LARGEST - 1, LARGEST, LARGEST + 1])))
def test_what_is_sealed_opens_as_the_same_data_in_order(count: int) -> None:
    """Any number of bytes, in as few packets as they fit into, each under the next nonce."""
    batch, encryption = Batch(), other_end()
    filled(batch, CONTENT[:count])

    end = batch.seal(Seal(KEY, NONCE), 7, count)

    payloads = opened(bytes(batch.buffer[:end]), encryption)
    heads = [struct.unpack(">BII", payload[:9]) for payload in payloads]
    assert [head[:2] for head in heads] == [(94, 7)] * packets(count)
    assert [head[2] for head in heads] == [len(payload) - 9 for payload in payloads]
    assert b"".join(payload[9:] for payload in payloads) == CONTENT[:count]
    assert encryption._cipher._iv == Seal(KEY, NONCE).after(packets(count))
    assert lengths(count) == end - packets(count) * (4 + 16)


@pytest.mark.parametrize("size", [16, 32])
def test_a_batch_is_used_again_and_again(size: int) -> None:
    """What was sealed there before leaves no trace in what is sealed next; with either length of key."""
    key, batch = os.urandom(size), Batch()
    encryption, seal = other_end(key), Seal(key, NONCE)
    for count in (BATCH * LARGEST, 5, LARGEST + 1, BATCH * LARGEST):
        filled(batch, CONTENT[:count])
        end = batch.seal(seal, 1, count)
        seal = Seal(key, seal.after(packets(count)))
        assert b"".join(payload[9:] for payload in opened(bytes(batch.buffer[:end]), encryption)) == CONTENT[:count]


def test_the_nonces_counter_wraps_and_leaves_its_fixed_part() -> None:
    """RFC 5647, section 7.1: the invocation counter has 64 bits, the fixed field stays."""
    assert Seal(KEY, b"fix!" + b"\xff" * 8).after(2) == b"fix!" + b"\0" * 7 + b"\1"


def test_room_is_whole_packets_or_a_part_of_one() -> None:
    """Never more than asked for."""
    batch = Batch()
    assert [len(place) for place in batch.room(10)] == [10]
    assert [len(place) for place in batch.room(LARGEST)] == [LARGEST]
    assert [len(place) for place in batch.room(3 * LARGEST - 1)] == [LARGEST] * 2
    assert [len(place) for place in batch.room(1 << 40)] == [LARGEST] * BATCH


# --- window adjusts ---


def sealed(encryption: GCMEncryption, *payloads: bytes, padding: int | None = None) -> bytes:
    """Return packets as asyncssh or sshd makes them."""
    wire = b""
    for payload in payloads:
        pad = -(1 + len(payload)) % 16 if padding is None else padding
        pad += 16 if pad < 4 else 0
        packet = bytes([pad]) + payload + os.urandom(pad)
        body, tag = encryption.encrypt_packet(0, len(packet).to_bytes(4, "big"), packet)
        wire += body + tag
    return wire


def adjust(channel: int, room: int) -> bytes:
    """Return a window adjust (RFC 4254, section 5.2)."""
    return struct.pack(">BII", 93, channel, room)


def test_adjusts_in_a_row_are_read() -> None:
    """Each with its channel and its bytes."""
    said = [(0, 1), (7, 98304), (0xFFFFFFFF, 0xFFFFFFFF)]
    wire = sealed(other_end(), *(adjust(*one) for one in said))

    assert len(wire) == len(said) * ADJUST_SIZE
    assert list(opened_adjusts(Seal(KEY, NONCE), wire)) == said


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0\0\0\x10 and then too little", id="a part of one"),
        pytest.param(b"\0\0\0\x10" + bytes(32), id="one of another key"),
        pytest.param(b"\xff" * 100, id="a length of something else"),
    ],
)
def test_what_follows_is_left(after: bytes) -> None:
    """Reading ends there, and what was read before stands."""
    wire = sealed(other_end(), adjust(1, 2)) + after

    assert list(opened_adjusts(Seal(KEY, NONCE), wire)) == [(1, 2)]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(struct.pack(">BI", 2, 0), id="ignore"),
        pytest.param(struct.pack(">BII", 94, 1, 0), id="empty data"),
        pytest.param(struct.pack(">BIII", 93, 1, 2, 3)[:11], id="a longer adjust"),
    ],
)
def test_another_message_of_the_same_size_is_left(payload: bytes) -> None:
    """It is for asyncssh to see, byte for byte."""
    encryption = other_end()
    wire = sealed(encryption, adjust(1, 2), payload, adjust(1, 3))

    assert list(opened_adjusts(Seal(KEY, NONCE), wire)) == [(1, 2)]


def test_a_counter_about_to_wrap_is_no_matter() -> None:
    """RFC 5647, section 7.1."""
    nonce = NONCE[:4] + b"\xff" * 8
    wire = sealed(other_end(nonce=nonce), adjust(1, 2), adjust(3, 4))

    assert list(opened_adjusts(Seal(KEY, nonce), wire)) == [(1, 2), (3, 4)]
