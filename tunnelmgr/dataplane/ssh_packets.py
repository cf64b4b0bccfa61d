"""SSH packets under AES-GCM, many in a row in one buffer: laid out, sealed and opened in place. No I/O, no asyncssh.

The form of a packet is that of RFC 4253, section 6, with RFC 5647, section 7: the length is authenticated and not
encrypted, padding makes the rest whole blocks, and each packet has its own nonce, counted up from the key exchange's.
"""

import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BATCH_PACKETS: Final = 8
"""Packets that are sealed before others have their turn: about 0.3 ms of work."""
PACKET_DATA_BYTES: Final = 32 * 1024
"""Bytes of data in a packet; every implementation takes as many (RFC 4253, section 6.1)."""
CHANNEL_DATA: Final = 94
"""SSH_MSG_CHANNEL_DATA (RFC 4254, section 5.2)."""
LENGTH_BYTES: Final = 4
"""Bytes of a packet's length."""
TAG_BYTES: Final = 16
"""Bytes of a packet's authentication tag."""

WINDOW_ADJUST: Final = 93
"""SSH_MSG_CHANNEL_WINDOW_ADJUST (RFC 4254, section 5.2)."""
CHANNEL_REQUEST, CHANNEL_FAILURE = 98, 100
"""SSH_MSG_CHANNEL_REQUEST and SSH_MSG_CHANNEL_FAILURE (RFC 4254, section 5.4)."""

_HEAD: Final = struct.Struct(">IBBII")
"""Packet length, padding length, message, channel, data length."""
_ADJUST_PADDING: Final = 6
_ADJUST: Final = struct.Struct(f">BBII{_ADJUST_PADDING}x")
"""Padding length, message, channel, bytes to add, padding."""
_DATA: Final = struct.Struct(">BBII")
"""Padding length, message, channel, data length."""
_REQUEST: Final = struct.Struct(">BBI")
"""Padding length, message, channel."""
_ASKED: Final = b"\0\0\0\x15keepalive@openssh.com\1"
"""The request's name, and that an answer is wanted."""
_MESSAGE: Final = struct.Struct(">BI")
"""Message, channel."""
_WITHIN: Final = _HEAD.size - LENGTH_BYTES
"""Bytes of that which are sealed along with the data."""
_COUNTER: Final = (1 << 64) - 1
_BLOCK: Final = 16
_LEAST_PADDING: Final = 4


class Seal(NamedTuple):
    """The cipher of one direction, and the nonce of its next packet: a fixed part and a counter."""

    cipher: AESGCM
    nonce: bytes


def nonce_after(nonce: bytes, packets: int) -> bytes:
    """Return the nonce of the packet that comes so many later (RFC 5647, section 7.1)."""
    counter = int.from_bytes(nonce[4:]) + packets
    return nonce[:4] + (counter & _COUNTER).to_bytes(8)


class Batch:
    """Room for `BATCH_PACKETS` packets of one channel's data; what is to be sent is put into `room` and sealed there.

    A packet's padding is what the last one left in its place, which is sealed and so as good as random.
    """

    def __init__(self) -> None:
        self.buffer: Final = memoryview(bytearray(BATCH_PACKETS * _STRIDE))
        places = [self.buffer[start:][:_STRIDE] for start in range(0, BATCH_PACKETS * _STRIDE, _STRIDE)]
        self._room = [place[_HEAD.size :][:PACKET_DATA_BYTES] for place in places]
        # Cut once for whole packets, of which nearly all are: each view costs as much as sealing a kilobyte.
        self._whole = [
            (place, place[:LENGTH_BYTES], place[LENGTH_BYTES:-TAG_BYTES], place[LENGTH_BYTES:]) for place in places
        ]

    def fill(self, data: memoryview) -> int:
        """Put as much of `data` into the room as it takes; returns how many bytes."""
        count = 0
        for place in self._room:
            piece = data[count : count + PACKET_DATA_BYTES]
            place[: len(piece)] = piece
            count += len(piece)
            if count == len(data):
                break
        return count

    def room(self, limit: int) -> Sequence[memoryview]:
        """Return where up to `limit` bytes go, packet by packet; of several, each is a whole one."""
        if limit < PACKET_DATA_BYTES:
            return (self._room[0][:limit],)
        return self._room[: limit // PACKET_DATA_BYTES]

    def seal(self, seal: Seal, channel: int, count: int) -> int:
        """Make packets of the first `count` bytes in the room; returns where they end in `buffer`."""
        sealer = seal.cipher
        whole, rest = divmod(count, PACKET_DATA_BYTES)
        for number in range(whole):
            place, length, plain, sealed = self._whole[number]
            _HEAD.pack_into(place, 0, _WHOLE, _WHOLE_PADDING, CHANNEL_DATA, channel, PACKET_DATA_BYTES)
            sealer.encrypt_into(nonce_after(seal.nonce, number), plain, length, sealed)
        end = whole * _STRIDE
        return end + self._seal_rest(sealer, nonce_after(seal.nonce, whole), channel, rest, end) if rest else end

    def _seal_rest(self, sealer: AESGCM, nonce: bytes, channel: int, size: int, start: int) -> int:
        """Make a packet that is not whole; returns how long it is."""
        length, place = _length(size), self.buffer[start:]
        _HEAD.pack_into(place, 0, length, _padding(size), CHANNEL_DATA, channel, size)
        end = LENGTH_BYTES + length
        sealer.encrypt_into(nonce, place[LENGTH_BYTES:end], place[:LENGTH_BYTES], place[LENGTH_BYTES : end + TAG_BYTES])
        return end + TAG_BYTES


class Opener:
    """Opens the packets of one direction, the next one first; nothing moves on before `accept` says so."""

    def __init__(self, seal: Seal) -> None:
        self._cipher = seal.cipher
        self.nonce = seal.nonce
        """The nonce of the next packet."""

    def open(self, wire: memoryview) -> bytes | None:
        """Return what one whole packet holds, its padding length first; None where it was not sealed for this place."""
        try:
            return self._cipher.decrypt(self.nonce, wire[LENGTH_BYTES:], wire[:LENGTH_BYTES])
        except InvalidTag:
            return None

    def accept(self) -> None:
        """Go on to the next packet."""
        self.nonce = nonce_after(self.nonce, 1)


def whole_packet(wire: memoryview) -> int:
    """Return how many bytes the packet at the front takes, from its length to its tag; 0 where that is not told yet."""
    return LENGTH_BYTES + int.from_bytes(wire[:LENGTH_BYTES]) + TAG_BYTES if len(wire) >= LENGTH_BYTES else 0


def window_adjust(plain: bytes) -> tuple[int, int] | None:
    """Return the channel and the bytes to add that a packet tells, None where it is nothing but a window adjust."""
    if len(plain) != _ADJUST.size:
        return None
    padding, message, channel, room = _ADJUST.unpack(plain)
    return (channel, room) if message == WINDOW_ADJUST and padding == _ADJUST_PADDING else None


def channel_data(plain: bytes) -> tuple[int, bytes] | None:
    """Return the channel and the data that a packet brings, None where it is nothing but data of a channel."""
    if len(plain) < _DATA.size or plain[1] != CHANNEL_DATA:
        return None
    padding, _, channel, size = _DATA.unpack_from(plain)
    if padding < _LEAST_PADDING or _DATA.size + size + padding != len(plain):
        return None
    return channel, plain[_DATA.size : _DATA.size + size]


def keepalive(plain: bytes) -> int | None:
    """Return the channel on which sshd asks whether we are there (`sshd_config(5)`, ClientAliveInterval), else None."""
    if not plain[1 : 2 + LENGTH_BYTES + len(_ASKED)].endswith(_ASKED):
        return None
    padding, message, channel = _REQUEST.unpack_from(plain)
    exact = padding >= _LEAST_PADDING and _REQUEST.size + len(_ASKED) + padding == len(plain)
    return channel if message == CHANNEL_REQUEST and exact else None


def failure(channel: int) -> bytes:
    """Return the message that says no to a request of a channel (RFC 4254, section 5.4)."""
    return _MESSAGE.pack(CHANNEL_FAILURE, channel)


def adjust(channel: int, room: int) -> bytes:
    """Return the message that opens a channel's window further (RFC 4254, section 5.2)."""
    return _MESSAGE.pack(WINDOW_ADJUST, channel) + room.to_bytes(4)


def sealed(seal: Seal, payload: bytes) -> bytes:
    """Return the packet of one small message."""
    padding = -(1 + len(payload)) % _BLOCK
    if padding < _LEAST_PADDING:
        padding += _BLOCK
    plain = bytes((padding,)) + payload + os.urandom(padding)
    length = len(plain).to_bytes(LENGTH_BYTES)
    return length + seal.cipher.encrypt(seal.nonce, plain, length)


def packets(count: int) -> int:
    """Return how many packets so many bytes make."""
    return -(-count // PACKET_DATA_BYTES)


def lengths(count: int) -> int:
    """Return the sum of those packets' lengths, which is what counts towards the next key exchange."""
    whole, rest = divmod(count, PACKET_DATA_BYTES)
    return whole * _WHOLE + (_length(rest) if rest else 0)


def _length(size: int) -> int:
    return _WITHIN + size + _padding(size)


def _padding(size: int) -> int:
    padding = -(_WITHIN + size) % _BLOCK
    return padding if padding >= _LEAST_PADDING else padding + _BLOCK


_WHOLE: Final = _length(PACKET_DATA_BYTES)
_WHOLE_PADDING: Final = _padding(PACKET_DATA_BYTES)
_STRIDE: Final = LENGTH_BYTES + _WHOLE + TAG_BYTES
