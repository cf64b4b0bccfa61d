"""Bulk data on its way to the agent: several CHANNEL_DATA packets framed, sealed and sent at once.

asyncssh makes each packet with a dozen small objects and a new AES key schedule, puts an IGNORE before it, and sends
both with two system calls. Here up to `BATCH` packets are laid out in one buffer, sealed there with the connection's
own key, and handed to the transport with one call.

This is the only file that touches asyncssh's private attributes for that, and correctness never rests on it:
- `send_bulk` sends only when the connection's state is exactly one that it knows (`_takes_bulk`); else it sends nothing
  and says so, and the caller uses `chan.write()`.
- It leaves the connection as if asyncssh had sent the packets itself: invocation counter, sequence number, window, and
  the bytes counted towards the next key exchange, which asyncssh begins as ever.
- Contract tests fail when asyncssh's attributes are no longer what is assumed here; in a release that is not in
  `PROVED` none of this is used.

Memory: one buffer of `BATCH` packets a thread (257 KiB), for all channels together, and what the line holds.
"""

import os
import threading
import time
from typing import Any, Final

import asyncssh
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PROVED: Final = frozenset({"2.24.1"})
"""The releases of asyncssh against which the contract tests have passed."""
BATCH: Final = 8
"""Packets that are sealed before other channels have their turn: about 0.3 ms of work."""
LARGEST: Final = 32 * 1024
"""Bytes of data in a packet; every implementation takes as many (RFC 4253, section 6.1)."""
SMALLEST: Final = 4 * 1024
"""A peer that wants smaller packets, or less data than that, gains nothing here."""

_DATA: Final = 94
"""SSH_MSG_CHANNEL_DATA (RFC 4254, section 9)."""
_FRAME: Final = 4 + 1 + 1 + 4 + 4
"""Bytes before the data: packet length, padding length, message, channel, data length."""
_BLOCK: Final = 16
_LEAST_PADDING: Final = 4
_TAG: Final = 16
_STRIDE: Final = _FRAME + LARGEST + _BLOCK + _LEAST_PADDING + _TAG
_USABLE: Final = asyncssh.__version__ in PROVED and hasattr(AESGCM, "encrypt_into")


class _Bench(threading.local):
    """Where packets are made: one buffer for all connections of a thread, since each batch is made without a pause."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(BATCH * _STRIDE))

    def renew(self) -> None:
        """Take a new buffer: the transport still holds parts of this one."""
        self.buffer = memoryview(bytearray(BATCH * _STRIDE))


_bench: Final = _Bench()


def send_bulk(chan: asyncssh.SSHTCPChannel[bytes], data: memoryview) -> int:
    """Send as much from the front of `data` as one batch and the agent's window take; returns how much that is.

    Returns 0, and does nothing, where this is no time for it.
    """
    inner: Any = chan
    conn: Any = inner._conn
    if len(data) < SMALLEST or not _takes_bulk(conn, inner):
        return 0
    size = min(LARGEST, inner._send_pktsize)
    count = min(len(data), inner._send_window, BATCH * size)
    cipher = conn._send_encryption._cipher
    sealer, prefix, invocation = AESGCM(cipher._key), cipher._iv[:4], int.from_bytes(cipher._iv[4:], "big")
    packets = -(-count // size)
    # The counter goes first: whatever fails from here on, no nonce is used twice (RFC 5647, section 7.1).
    cipher._iv = prefix + _counter(invocation + packets)
    end = 0
    for number in range(packets):
        piece = data[number * size : min(count, (number + 1) * size)]
        end = _seal(sealer, prefix + _counter(invocation + number), inner._send_chan, piece, end)
    conn._send_seq = (conn._send_seq + packets) & 0xFFFFFFFF
    conn._rekey_bytes_sent += end - packets * (4 + _TAG)
    inner._send_window -= count
    conn._send(_bench.buffer[:end])
    if conn._transport is None or conn._transport.get_write_buffer_size():
        _bench.renew()
    return int(count)


def await_window(chan: asyncssh.SSHTCPChannel[bytes]) -> bool:
    """Have asyncssh call the session's `resume_writing` once the agent's window opens; False where it need not.

    asyncssh does that only for a channel on which it has told the session to pause.
    """
    inner: Any = chan
    if not _USABLE or inner._send_window or inner._send_buf or inner._send_state != "open":
        return False
    inner._send_paused = True
    return True


def _takes_bulk(conn: Any, chan: Any) -> bool:  # noqa: ANN401 - private parts have no types that hold
    return (
        _USABLE
        and conn is not None
        and conn._transport is not None
        and chan._send_state == "open"
        and not chan._send_buf
        and chan._encoding is None
        and chan._send_window >= SMALLEST
        and chan._send_pktsize >= SMALLEST
        and _sends_sealed(conn)
        and not _rekeys(conn)
    )


def _sends_sealed(conn: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether packets go out now, uncompressed, under AES-GCM (RFC 5647)."""
    encryption = conn._send_encryption
    return (
        conn._auth_complete
        and conn._kex_complete
        and not conn._deferred_packets
        and conn._compressor is None
        and type(encryption) is GCMEncryption
        and type(encryption._cipher) is GCMCipher
    )


def _rekeys(conn: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a key exchange is due (RFC 4253, section 9); asyncssh's own next packet begins it."""
    return bool(
        conn._rekey_bytes_sent >= conn._rekey_bytes or (conn._rekey_seconds and time.monotonic() >= conn._rekey_time)
    )


def _seal(sealer: AESGCM, nonce: bytes, channel: int, piece: memoryview, begin: int) -> int:
    """Lay one packet out at `begin` and seal it in place; returns where it ends.

    The length is authenticated, not encrypted; padding makes the rest whole blocks (RFC 5647, section 7.2).
    """
    size = len(piece)
    inside = _FRAME - 4 + size
    padding = -inside % _BLOCK
    if padding < _LEAST_PADDING:
        padding += _BLOCK
    length = (inside + padding).to_bytes(4, "big")
    start, data = begin + 4, begin + _FRAME
    end = start + inside + padding
    buffer = _bench.buffer
    buffer[begin:data] = length + bytes((padding, _DATA)) + channel.to_bytes(4, "big") + size.to_bytes(4, "big")
    buffer[data : data + size] = piece
    buffer[data + size : end] = os.urandom(padding)
    sealer.encrypt_into(nonce, buffer[start:end], length, buffer[start : end + _TAG])
    return end + _TAG


def _counter(invocation: int) -> bytes:
    return (invocation & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")
