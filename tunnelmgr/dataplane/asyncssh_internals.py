"""Bulk data past asyncssh, which shares its connection state; the only file that touches asyncssh's private attributes.

asyncssh builds each packet from a dozen small objects and a new AES key schedule, puts an IGNORE before it, and sends
both with two system calls; a window adjust of forty bytes costs it as much as a packet of 32 KiB. So data to the agent
is sealed in batches (`ssh_packets`), and data, window adjusts and keepalives from the agent are processed here, in the
way that asyncssh would. The package docstring says why correctness does not depend on it.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import asyncssh
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnelmgr.dataplane.asyncssh_attributes import CLASSES, Channel, Cipher, Connection, Encryption
from tunnelmgr.dataplane.ssh_packets import (
    LENGTH_BYTES,
    PACKET_DATA_BYTES,
    TAG_BYTES,
    WINDOW_ADJUST,
    Opener,
    Seal,
    adjust,
    channel_data,
    failure,
    keepalive,
    lengths,
    nonce_after,
    packets,
    sealed,
    whole_packet,
    window_adjust,
)

MAX_PACKET_BYTES: Final = 40 * 1024
"""Bytes of the longest packet that is opened here; longer ones are left to asyncssh."""
OPAQUE_PIECE_BYTES: Final = 4 * 1024
"""Bytes that asyncssh gets at a time if packets cannot be told apart here: at most 64 messages, or 4 ms."""
PACKETS_PER_TIME_CHECK: Final = 16
"""Packets that are processed between two checks of the time: about 0.1 ms."""

_GCM_CIPHER, _GCM_ENCRYPTION = CLASSES[Cipher], CLASSES[Encryption]
_ciphers: Final[WeakKeyDictionary[Cipher, AESGCM]] = WeakKeyDictionary()
_RECEIVES_MESSAGES: Final = frozenset({"open", "eof_pending", "eof"})
"""States of a channel for which the other side may still send messages (RFC 4254, section 5.3)."""


class SendState(NamedTuple):
    """What is needed to send now: the seal, the agent's number for the channel, and its open window in bytes."""

    seal: Seal
    channel: int
    window: int


def send_state(chan: asyncssh.SSHTCPChannel[bytes]) -> SendState | None:
    """Return what sending needs, None if only asyncssh may send now."""
    inner = cast("Channel", chan)
    conn = inner._conn
    if (
        conn is None
        or inner._send_state != "open"
        or inner._send_chan is None
        or inner._send_buf
        or inner._encoding is not None
        or inner._send_pktsize < PACKET_DATA_BYTES
        or _rekey_due(conn)
        or (cipher := _sending_cipher(conn)) is None
    ):
        return None
    return SendState(_seal(cipher), inner._send_chan, inner._send_window)


def send_window(chan: asyncssh.SSHTCPChannel[bytes]) -> int:
    """Return how many bytes of data the agent accepts now."""
    return cast("Channel", chan)._send_window


def account(chan: asyncssh.SSHTCPChannel[bytes], count: int) -> None:
    """Count `count` bytes of data that are sent in packets sealed here.

    Called before they are sealed, so that no nonce is used twice even if sealing fails (RFC 5647, section 7.1).
    """
    inner = cast("Channel", chan)
    conn = inner._conn
    if conn is None or conn._send_encryption is None:
        raise ConnectionResetError("the channel is closed")
    _count_sent(conn, conn._send_encryption._cipher, packets(count), lengths(count))
    inner._send_window -= count


def _count_sent(conn: Connection, cipher: Cipher, number: int, octets: int) -> None:
    cipher._iv = nonce_after(cipher._iv, number)
    conn._send_seq = (conn._send_seq + number) & 0xFFFFFFFF
    conn._rekey_bytes_sent += octets


def process_packets(protocol: asyncio.Protocol, wire: memoryview, out_of_time: Callable[[], bool]) -> tuple[int, bool]:
    """Process what has arrived: data, window adjusts and keepalives of open channels here, the rest in asyncssh.

    Returns how many bytes were processed, and whether those that remain can be processed now: True if the step is
    `out_of_time`, False if they are an incomplete packet. They come before the bytes that arrive next.
    """
    conn = cast("Connection", protocol)
    left = wire
    while left and conn._transport is not None:
        cipher = _receiving_cipher(conn)
        if cipher is None or not _between_packets(conn):
            count = min(_asyncssh_share(conn, cipher, len(left)), OPAQUE_PIECE_BYTES)
        else:
            left = left[_process_known(conn, cipher, left, out_of_time) :]
            count = whole_packet(left)
            if count > MAX_PACKET_BYTES:
                count = len(left)
            elif not count or count > len(left):
                return len(wire) - len(left), False
        protocol.data_received(bytes(left[:count]))
        left = left[count:]
        if left and out_of_time():
            return len(wire) - len(left), True
    return len(wire), False


def _process_known(conn: Connection, cipher: Cipher, wire: memoryview, out_of_time: Callable[[], bool]) -> int:
    """Process the packets at the front of `wire` that are known here; return their size in bytes."""
    opener = Opener(_seal(cipher))
    done = count = 0
    widened: dict[int, Channel] = {}
    while done < len(wire) and 0 < (size := whole_packet(wire[done:])) <= min(len(wire) - done, MAX_PACKET_BYTES):
        plain = opener.open(wire[done : done + size])
        effect = None if plain is None else _effect(conn, plain, widened)
        if effect is None:
            break
        opener.accept()
        done += size
        count += 1
        cipher._iv = opener.nonce
        conn._recv_seq = (conn._recv_seq + 1) & 0xFFFFFFFF
        effect()
        if count % PACKETS_PER_TIME_CHECK == 0 and out_of_time():
            break
    for chan in widened.values():
        chan._flush_send_buf()
    return done


def _effect(conn: Connection, plain: bytes, widened: dict[int, Channel]) -> Callable[[], None] | None:
    """Return the effect of a packet, None if only asyncssh knows it; channels whose window it opens go to `widened`."""
    if (adjustment := window_adjust(plain)) is not None:
        chan = conn._channels.get(adjustment[0])
        if chan is None or chan._recv_state not in _RECEIVES_MESSAGES:
            return None
        return partial(_widen, chan, adjustment, widened)
    if (received := channel_data(plain)) is not None:
        chan, data = conn._channels.get(received[0]), received[1]
        accepts = chan is not None and chan._recv_state == "open" and 0 < len(data) <= chan._recv_window
        return partial(chan._accept_data, data) if accepts and chan is not None and chan._encoding is None else None
    if (number := keepalive(plain)) is not None:
        chan = conn._channels.get(number)
        if chan is None or chan._recv_state not in _RECEIVES_MESSAGES or chan._request_queue:
            return None
        cipher = _sending_cipher(conn)
        if chan._send_state == "open" and chan._send_chan is not None and cipher is not None and not _rekey_due(conn):
            return partial(_send_one, conn, cipher, failure(chan._send_chan))  # as asyncssh: a failure is an answer too
    return None


def _widen(chan: Channel, adjustment: tuple[int, int], widened: dict[int, Channel]) -> None:
    number, room = adjustment
    chan._send_window += room
    widened[number] = chan


def _send_one(conn: Connection, cipher: Cipher, message: bytes) -> None:
    wire = sealed(_seal(cipher), message)
    _count_sent(conn, cipher, 1, len(wire) - LENGTH_BYTES - TAG_BYTES)
    conn._send(wire)


def disable_asyncssh_window(chan: asyncssh.SSHTCPChannel[bytes]) -> None:
    """Keep asyncssh from reopening the receive window of this channel."""
    cast("Channel", chan)._init_recv_window = 0  # asyncssh reopens a window that is less than half of this


def open_window(chan: asyncssh.SSHTCPChannel[bytes], room: int) -> None:
    """Let the agent send `room` more bytes."""
    inner = cast("Channel", chan)
    conn = inner._conn
    if conn is None or inner._recv_state != "open" or inner._send_chan is None:
        return
    inner._recv_window += room
    cipher = _sending_cipher(conn)
    if inner._send_state == "open" and cipher is not None and not _rekey_due(conn):
        _send_one(conn, cipher, adjust(inner._send_chan, room))
    else:
        inner.send_packet(WINDOW_ADJUST, room.to_bytes(4))


def await_window(chan: asyncssh.SSHTCPChannel[bytes]) -> None:
    """Have asyncssh call the session's `resume_writing` when the agent's window opens.

    It calls that only for a channel on which it has paused writing.
    """
    cast("Channel", chan)._send_paused = True


def _seal(cipher: Cipher) -> Seal:
    """Return the seal of one direction; asyncssh computes the key schedule for each packet, this only once."""
    ready = _ciphers.get(cipher)
    if ready is None:
        ready = _ciphers[cipher] = AESGCM(cipher._key)
    return Seal(ready, cipher._iv)


def _sending_cipher(conn: Connection) -> Cipher | None:
    """Return the cipher of packets sent now; None if nothing may be sent, or unless AES-GCM without compression."""
    encryption = conn._send_encryption
    if (
        conn._transport is not None
        and conn._auth_complete
        and conn._kex_complete
        and not conn._deferred_packets
        and conn._compressor is None
        and encryption is not None
        and type(encryption) is _GCM_ENCRYPTION
        and type(encryption._cipher) is _GCM_CIPHER
    ):
        return encryption._cipher
    return None


def _receiving_cipher(conn: Connection) -> Cipher | None:
    """Return the cipher of packets received now; None unless AES-GCM without compression, or in a key exchange."""
    encryption = conn._recv_encryption
    if (
        conn._auth_final
        and conn._kex is None
        and conn._kex_complete
        and conn._decompressor is None
        and encryption is not None
        and type(encryption) is _GCM_ENCRYPTION
        and type(encryption._cipher) is _GCM_CIPHER
    ):
        return encryption._cipher
    return None


def _between_packets(conn: Connection) -> bool:
    """Return whether asyncssh has processed whole packets only, and waits for the next header."""
    return not conn._inpbuf and conn._recv_handler == conn._recv_pkthdr


def _asyncssh_share(conn: Connection, cipher: Cipher | None, available: int) -> int:
    """Return how many of the bytes to pass to asyncssh: those that complete its packet, if that is known."""
    if cipher is None:
        return available
    if conn._recv_handler == conn._recv_pkthdr:
        whole = conn._recv_blocksize
    elif conn._recv_handler == conn._recv_packet:
        whole = LENGTH_BYTES + conn._pktlen + TAG_BYTES - conn._recv_blocksize
    else:
        return available
    return max(1, min(available, whole - len(conn._inpbuf)))


def _rekey_due(conn: Connection) -> bool:
    """Return whether a key exchange is due (RFC 4253, section 9); asyncssh's own next packet begins it."""
    return conn._rekey_bytes_sent >= conn._rekey_bytes or (
        conn._rekey_seconds != 0 and time.monotonic() >= conn._rekey_time
    )


def break_cycles(protocol: asyncssh.SSHClientConnection) -> None:
    """Break the reference cycles of a connection that is over: its receive handler and an unfinished key exchange."""
    conn = cast("Connection", protocol)
    conn._recv_handler = _receives_nothing
    conn._kex = None


def _receives_nothing() -> bool:
    return False
