"""SSH packets under AES-GCM: several in one buffer, framed, sealed and opened in place. No I/O, no asyncssh.

The packet format is that of RFC 4253, section 6, with RFC 5647, section 7: the length is authenticated but not
encrypted, padding fills up the last block, and the nonce of each packet is that of the one before plus one, starting
with the key exchange's.
"""

import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BATCH_PACKETS: Final = 8
"""Packets in a batch, which is sealed and sent in one step: about 0.3 ms of work."""
PACKET_DATA_BYTES: Final = 32 * 1024
"""Bytes of data in a full packet, which every implementation accepts (RFC 4253, section 6.1)."""
CHANNEL_DATA: Final = 94
"""SSH_MSG_CHANNEL_DATA (RFC 4254, section 5.2)."""
LENGTH_BYTES: Final = 4
"""Size of a packet's length field."""
TAG_BYTES: Final = 16
"""Size of a packet's authentication tag."""

WINDOW_ADJUST: Final = 93
"""SSH_MSG_CHANNEL_WINDOW_ADJUST (RFC 4254, section 5.2)."""
CHANNEL_REQUEST, CHANNEL_FAILURE = 98, 100
"""SSH_MSG_CHANNEL_REQUEST and SSH_MSG_CHANNEL_FAILURE (RFC 4254, section 5.4)."""

_HEADER: Final = struct.Struct(">IBBII")
"""Packet length, padding length, message, channel, data length."""
_ADJUST_PADDING: Final = 6
_ADJUST: Final = struct.Struct(f">BBII{_ADJUST_PADDING}x")
"""Padding length, message, channel, bytes to add, padding."""
_DATA: Final = struct.Struct(">BBII")
"""Padding length, message, channel, data length."""
_REQUEST: Final = struct.Struct(">BBI")
"""Padding length, message, channel."""
_KEEPALIVE: Final = b"\0\0\0\x15keepalive@openssh.com\1"
"""The request's name, and the flag that wants an answer."""
_MESSAGE: Final = struct.Struct(">BI")
"""Message, channel."""
_SEALED_HEADERER: Final = _HEADER.size - LENGTH_BYTES
"""Bytes of the header that are sealed along with the data."""
_COUNTER: Final = (1 << 64) - 1
_BLOCK: Final = 16
_MIN_PADDING: Final = 4


class Seal(NamedTuple):
    """The cipher of one direction, and the nonce of its next packet: a fixed part and a counter."""

    cipher: AESGCM
    nonce: bytes


def nonce_after(nonce: bytes, packets: int) -> bytes:
    """Return the nonce of the packet that comes `packets` later (RFC 5647, section 7.1)."""
    counter = int.from_bytes(nonce[4:]) + packets
    return nonce[:4] + (counter & _COUNTER).to_bytes(8)


class Batch:
    """A buffer for `BATCH_PACKETS` packets of one channel's data, which is put into `room` and sealed in place.

    A packet's padding is what the previous packet left there: ciphertext, which is indistinguishable from random.
    """

    def __init__(self) -> None:
        self.buffer: Final = memoryview(bytearray(BATCH_PACKETS * _STRIDE))
        slots = [self.buffer[start:][:_STRIDE] for start in range(0, BATCH_PACKETS * _STRIDE, _STRIDE)]
        self._room = [slot[_HEADER.size :][:PACKET_DATA_BYTES] for slot in slots]
        # Views for full packets, which nearly all are, are made once: each costs as much as sealing a kilobyte.
        self._full = [(slot, slot[:LENGTH_BYTES], slot[LENGTH_BYTES:-TAG_BYTES], slot[LENGTH_BYTES:]) for slot in slots]

    def fill(self, data: memoryview) -> int:
        """Copy as much of `data` into the room as fits; returns how many bytes."""
        count = 0
        for slot in self._room:
            piece = data[count : count + PACKET_DATA_BYTES]
            slot[: len(piece)] = piece
            count += len(piece)
            if count == len(data):
                break
        return count

    def room(self, limit: int) -> Sequence[memoryview]:
        """Return buffers for up to `limit` bytes, one per packet; several buffers are each of full size."""
        if limit < PACKET_DATA_BYTES:
            return (self._room[0][:limit],)
        return self._room[: limit // PACKET_DATA_BYTES]

    def seal(self, seal: Seal, channel: int, count: int) -> int:
        """Make packets of the first `count` bytes in the room; returns where they end in `buffer`."""
        cipher = seal.cipher
        full, remaining = divmod(count, PACKET_DATA_BYTES)
        for number in range(full):
            slot, length, plain, sealed = self._full[number]
            _HEADER.pack_into(slot, 0, _FULL_LENGTH, _FULL_PADDING, CHANNEL_DATA, channel, PACKET_DATA_BYTES)
            cipher.encrypt_into(nonce_after(seal.nonce, number), plain, length, sealed)
        end = full * _STRIDE
        if not remaining:
            return end
        return end + self._seal_partial(cipher, nonce_after(seal.nonce, full), channel, remaining, end)

    def _seal_partial(self, cipher: AESGCM, nonce: bytes, channel: int, size: int, start: int) -> int:
        """Make a packet of less than full size; returns its length."""
        length, slot = _length(size), self.buffer[start:]
        _HEADER.pack_into(slot, 0, length, _padding(size), CHANNEL_DATA, channel, size)
        end = LENGTH_BYTES + length
        cipher.encrypt_into(nonce, slot[LENGTH_BYTES:end], slot[:LENGTH_BYTES], slot[LENGTH_BYTES : end + TAG_BYTES])
        return end + TAG_BYTES


class Opener:
    """Opens the packets of one direction in order; the nonce advances only by `accept`."""

    def __init__(self, seal: Seal) -> None:
        self._cipher = seal.cipher
        self.nonce = seal.nonce
        """The nonce of the next packet."""

    def open(self, wire: memoryview) -> bytes | None:
        """Return the content of one packet, padding length first; None if it was not sealed with the expected nonce."""
        try:
            return self._cipher.decrypt(self.nonce, wire[LENGTH_BYTES:], wire[:LENGTH_BYTES])
        except InvalidTag:
            return None

    def accept(self) -> None:
        """Advance to the next packet."""
        self.nonce = nonce_after(self.nonce, 1)


def whole_packet(wire: memoryview) -> int:
    """Return the size of the first packet in `wire`, from length to tag; 0 if its length has not arrived yet."""
    return LENGTH_BYTES + int.from_bytes(wire[:LENGTH_BYTES]) + TAG_BYTES if len(wire) >= LENGTH_BYTES else 0


def window_adjust(plain: bytes) -> tuple[int, int] | None:
    """Return a window adjust's channel and bytes to add, None if the packet is anything else."""
    if len(plain) != _ADJUST.size:
        return None
    padding, message, channel, room = _ADJUST.unpack(plain)
    return (channel, room) if message == WINDOW_ADJUST and padding == _ADJUST_PADDING else None


def channel_data(plain: bytes) -> tuple[int, bytes] | None:
    """Return the channel and the data of a packet, None if it is anything but channel data."""
    if len(plain) < _DATA.size or plain[1] != CHANNEL_DATA:
        return None
    padding, _, channel, size = _DATA.unpack_from(plain)
    if padding < _MIN_PADDING or _DATA.size + size + padding != len(plain):
        return None
    return channel, plain[_DATA.size : _DATA.size + size]


def keepalive(plain: bytes) -> int | None:
    """Return the channel of an sshd keepalive request (`sshd_config(5)`, ClientAliveInterval), else None."""
    if not plain[1 : 2 + LENGTH_BYTES + len(_KEEPALIVE)].endswith(_KEEPALIVE):
        return None
    padding, message, channel = _REQUEST.unpack_from(plain)
    exact = padding >= _MIN_PADDING and _REQUEST.size + len(_KEEPALIVE) + padding == len(plain)
    return channel if message == CHANNEL_REQUEST and exact else None


def failure(channel: int) -> bytes:
    """Return the message that refuses a channel request (RFC 4254, section 5.4)."""
    return _MESSAGE.pack(CHANNEL_FAILURE, channel)


def adjust(channel: int, room: int) -> bytes:
    """Return the message that adds `room` bytes to a channel's window (RFC 4254, section 5.2)."""
    return _MESSAGE.pack(WINDOW_ADJUST, channel) + room.to_bytes(4)


def sealed(seal: Seal, payload: bytes) -> bytes:
    """Return the sealed packet of one small message."""
    padding = -(1 + len(payload)) % _BLOCK
    if padding < _MIN_PADDING:
        padding += _BLOCK
    plain = bytes((padding,)) + payload + os.urandom(padding)
    length = len(plain).to_bytes(LENGTH_BYTES)
    return length + seal.cipher.encrypt(seal.nonce, plain, length)


def packets(count: int) -> int:
    """Return how many packets `count` bytes of data make."""
    return -(-count // PACKET_DATA_BYTES)


def lengths(count: int) -> int:
    """Return the sum of those packets' lengths, which counts towards the next key exchange."""
    full, remaining = divmod(count, PACKET_DATA_BYTES)
    return full * _FULL_LENGTH + (_length(remaining) if remaining else 0)


def _length(size: int) -> int:
    return _SEALED_HEADERER + size + _padding(size)


def _padding(size: int) -> int:
    padding = -(_SEALED_HEADERER + size) % _BLOCK
    return padding if padding >= _MIN_PADDING else padding + _BLOCK


_FULL_LENGTH: Final = _length(PACKET_DATA_BYTES)
_FULL_PADDING: Final = _padding(PACKET_DATA_BYTES)
_STRIDE: Final = LENGTH_BYTES + _FULL_LENGTH + TAG_BYTES
