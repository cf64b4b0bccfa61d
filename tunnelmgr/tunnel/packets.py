"""SSH packets under AES-GCM, many in a row in one buffer: laid out, sealed and opened in place. No I/O, no asyncssh.

The form of a packet is that of RFC 4253, section 6, with RFC 5647, section 7: the length is authenticated and not
encrypted, padding makes the rest whole blocks, and each packet has its own nonce, counted up from the key exchange's.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BATCH: Final = 8
"""Packets that are sealed before others have their turn: about 0.3 ms of work."""
LARGEST: Final = 32 * 1024
"""Bytes of data in a packet; every implementation takes as many (RFC 4253, section 6.1)."""
DATA: Final = 94
"""SSH_MSG_CHANNEL_DATA (RFC 4254, section 5.2)."""
LENGTH: Final = 4
"""Bytes of a packet's length."""
TAG: Final = 16
"""Bytes of a packet's authentication tag."""

WINDOW_ADJUST: Final = 93
"""SSH_MSG_CHANNEL_WINDOW_ADJUST (RFC 4254, section 5.2)."""
ADJUST_SIZE: Final = 36
"""Bytes of a window adjust, from its length to its tag."""

_HEAD: Final = struct.Struct(">IBBII")
"""Packet length, padding length, message, channel, data length."""
_ADJUST_PADDING: Final = 6
_ADJUST: Final = struct.Struct(f">BBII{_ADJUST_PADDING}x")
"""Padding length, message, channel, bytes to add, padding."""
_ADJUST_LENGTH: Final = _ADJUST.size.to_bytes(4)
_WITHIN: Final = _HEAD.size - LENGTH
"""Bytes of that which are sealed along with the data."""
_COUNTER: Final = (1 << 64) - 1
_BLOCK: Final = 16
_LEAST_PADDING: Final = 4


class Seal(NamedTuple):
    """The key of one direction, and the nonce of its next packet: a fixed part and a counter."""

    key: bytes
    nonce: bytes

    def after(self, packets: int) -> bytes:
        """Return the nonce of the packet that comes after so many (RFC 5647, section 7.1)."""
        counter = int.from_bytes(self.nonce[4:]) + packets
        return self.nonce[:4] + (counter & _COUNTER).to_bytes(8)


class Batch:
    """Room for `BATCH` packets of one channel's data; what is to be sent is put into `room` and sealed there.

    A packet's padding is what the last one left in its place, which is sealed and so as good as random.
    """

    def __init__(self) -> None:
        self.buffer: Final = memoryview(bytearray(BATCH * _STRIDE))
        places = [self.buffer[start:][:_STRIDE] for start in range(0, BATCH * _STRIDE, _STRIDE)]
        self._room = [place[_HEAD.size :][:LARGEST] for place in places]
        # Cut once for whole packets, of which nearly all are: each view costs as much as sealing a kilobyte.
        self._whole = [(place, place[:LENGTH], place[LENGTH:-TAG], place[LENGTH:]) for place in places]

    def room(self, limit: int) -> Sequence[memoryview]:
        """Return where up to `limit` bytes go, packet by packet; of several, each is a whole one."""
        if limit < LARGEST:
            return (self._room[0][:limit],)
        return self._room[: limit // LARGEST]

    def seal(self, seal: Seal, channel: int, count: int) -> int:
        """Make packets of the first `count` bytes in the room; returns where they end in `buffer`."""
        sealer = AESGCM(seal.key)
        whole, rest = divmod(count, LARGEST)
        for number in range(whole):
            place, length, plain, sealed = self._whole[number]
            _HEAD.pack_into(place, 0, _WHOLE, _WHOLE_PADDING, DATA, channel, LARGEST)
            sealer.encrypt_into(seal.after(number), plain, length, sealed)
        end = whole * _STRIDE
        return end + self._seal_rest(sealer, seal.after(whole), channel, rest, end) if rest else end

    def _seal_rest(self, sealer: AESGCM, nonce: bytes, channel: int, size: int, start: int) -> int:
        """Make a packet that is not whole; returns how long it is."""
        length, place = _length(size), self.buffer[start:]
        _HEAD.pack_into(place, 0, length, _padding(size), DATA, channel, size)
        end = LENGTH + length
        sealer.encrypt_into(nonce, place[LENGTH:end], place[:LENGTH], place[LENGTH : end + TAG])
        return end + TAG


def opened_adjusts(seal: Seal, data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the channel and the bytes to add of each window adjust at the front of `data`.

    Ends at the first packet that is none, or not whole, or not sealed with this seal.
    """
    if not data.startswith(_ADJUST_LENGTH):
        return
    opener = AESGCM(seal.key)
    fixed, counter = seal.nonce[:4], int.from_bytes(seal.nonce[4:])
    for start in range(0, len(data) - ADJUST_SIZE + 1, ADJUST_SIZE):
        if not data.startswith(_ADJUST_LENGTH, start):
            return
        nonce = fixed + (counter & _COUNTER).to_bytes(8)
        try:
            plain = opener.decrypt(nonce, data[start + LENGTH : start + ADJUST_SIZE], _ADJUST_LENGTH)
        except InvalidTag:
            return
        padding, message, channel, room = _ADJUST.unpack(plain)
        if message != WINDOW_ADJUST or padding != _ADJUST_PADDING:
            return
        yield channel, room
        counter += 1


def packets(count: int) -> int:
    """Return how many packets so many bytes make."""
    return -(-count // LARGEST)


def lengths(count: int) -> int:
    """Return the sum of those packets' lengths, which is what counts towards the next key exchange."""
    whole, rest = divmod(count, LARGEST)
    return whole * _WHOLE + (_length(rest) if rest else 0)


def _length(size: int) -> int:
    return _WITHIN + size + _padding(size)


def _padding(size: int) -> int:
    padding = -(_WITHIN + size) % _BLOCK
    return padding if padding >= _LEAST_PADDING else padding + _BLOCK


_WHOLE: Final = _length(LARGEST)
_WHOLE_PADDING: Final = _padding(LARGEST)
_STRIDE: Final = LENGTH + _WHOLE + TAG
