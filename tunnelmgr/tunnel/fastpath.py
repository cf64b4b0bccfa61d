"""What is known of asyncssh's inside, so that bulk data can go past it; the only file that touches private attributes.

asyncssh makes each packet with a dozen small objects and a new AES key schedule, puts an IGNORE before it, and sends
both with two system calls; a window adjust of forty bytes costs it as much as a packet of 32 KiB. So data to the agent
is sealed in batches (`packets`), and the agent's data, window adjusts and keepalives are worked off here, as asyncssh
would do it.

Correctness never rests on it:
- It is used only while the connection's state is exactly one that is known here; else `outlet` is None, and `hear`
  leaves all to asyncssh.
- It leaves the connection as if asyncssh had done the work: nonces, sequence numbers, windows, and the bytes counted
  towards the next key exchange, which asyncssh begins as ever.
- Contract tests fail when asyncssh's attributes are no longer what is assumed here; in a release that is not in
  `PROVED` none of this is used.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import asyncssh
from asyncssh.connection import SSHClientConnection
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnelmgr.tunnel.packets import (
    LARGEST,
    LENGTH,
    TAG,
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

PROVED: Final = frozenset({"2.24.1"})
"""The releases of asyncssh against which the contract tests have passed."""

LONGEST: Final = 40 * 1024
"""Bytes of the longest packet that is looked at here; only asyncssh reads longer ones."""
UNSEEN: Final = 4 * 1024
"""Bytes that asyncssh gets at a time where packets cannot be told apart here: at most 64 messages, or 4 ms."""
LOOK: Final = 16
"""Packets that are processed between two looks at the time: about 0.1 ms."""

_ciphers: Final[WeakKeyDictionary[GCMCipher, AESGCM]] = WeakKeyDictionary()
_HEARS_REQUESTS: Final = frozenset({"open", "eof_pending", "eof"})
"""States of a channel whose other side may still say something about it (RFC 4254, section 5.3)."""
_USABLE: Final = asyncssh.__version__ in PROVED and hasattr(AESGCM, "encrypt_into")


class Outlet(NamedTuple):
    """How data goes out on a channel right now: under which seal, to which channel of the agent's, into what window."""

    seal: Seal
    channel: int
    window: int


def outlet(chan: asyncssh.SSHTCPChannel[bytes]) -> Outlet | None:
    """Return how data goes out, None where only asyncssh may send it."""
    inner: Any = chan
    conn: Any = inner._conn
    if (
        not _USABLE
        or conn is None
        or inner._send_state != "open"
        or inner._send_buf
        or inner._encoding is not None
        or inner._send_pktsize < LARGEST
        or not _sends_sealed(conn)
        or _rekeys(conn)
    ):
        return None
    return Outlet(_seal(conn._send_encryption._cipher), inner._send_chan, inner._send_window)


def window(chan: asyncssh.SSHTCPChannel[bytes]) -> int:
    """Return how many bytes of data the agent takes right now."""
    inner: Any = chan
    return int(inner._send_window)


def account(chan: asyncssh.SSHTCPChannel[bytes], count: int) -> None:
    """Take note of `count` bytes of data that go out in packets of ours.

    Called before they are sealed: whatever fails after this, no nonce is used twice (RFC 5647, section 7.1).
    """
    inner: Any = chan
    _count_sent(inner._conn, packets(count), lengths(count))
    inner._send_window -= count


def _count_sent(conn: Any, number: int, octets: int) -> None:  # noqa: ANN401 - private parts have no types that hold
    cipher = conn._send_encryption._cipher
    cipher._iv = nonce_after(cipher._iv, number)
    conn._send_seq = (conn._send_seq + number) & 0xFFFFFFFF
    conn._rekey_bytes_sent += octets


def hear(protocol: asyncio.Protocol, wire: memoryview, out_of_time: Callable[[], bool]) -> tuple[int, bool]:
    """Process what has arrived: data, window adjusts and keepalives of open channels here, all else in asyncssh.

    Returns how many bytes were processed, and whether the rest can be processed at once: it was left because the step
    is `out_of_time`. Else the rest is the beginning of a packet that is not whole yet. Either way it belongs before
    what arrives next.
    """
    conn: Any = protocol
    known = _USABLE and type(protocol) is SSHClientConnection
    left = wire
    while left and (not known or conn._transport is not None):
        if not known:
            count = min(len(left), UNSEEN)
        elif not (_hears_sealed(conn) and _between_packets(conn)):
            count = min(_wanted(conn, len(left)), UNSEEN)
        else:
            left = left[_work_off(conn, left, out_of_time) :]
            count = whole_packet(left)
            if count > LONGEST:
                count = len(left)
            elif not count or count > len(left):
                return len(wire) - len(left), False
        protocol.data_received(bytes(left[:count]))
        left = left[count:]
        if left and out_of_time():
            return len(wire) - len(left), True
    return len(wire), False


def _work_off(conn: Any, wire: memoryview, out_of_time: Callable[[], bool]) -> int:  # noqa: ANN401 - private parts have no types that hold
    """Process the packets at the front of `wire` that are known here; return how many bytes they take."""
    cipher = conn._recv_encryption._cipher
    opener = Opener(_seal(cipher))
    done = count = 0
    widened: dict[int, Any] = {}
    while done < len(wire) and 0 < (size := whole_packet(wire[done:])) <= min(len(wire) - done, LONGEST):
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
        if count % LOOK == 0 and out_of_time():
            break
    for chan in widened.values():
        chan._flush_send_buf()
    return done


def _effect(conn: Any, plain: bytes, widened: dict[int, Any]) -> Callable[[], None] | None:  # noqa: ANN401 - as above
    """Return what a packet does, None where only asyncssh knows; channels whose window it opens go into `widened`."""
    if (opening := window_adjust(plain)) is not None:
        chan = conn._channels.get(opening[0])
        if chan is None or chan._recv_state not in _HEARS_REQUESTS:
            return None
        return partial(_widen, chan, opening[1], widened)
    if (arrived := channel_data(plain)) is not None:
        chan, data = conn._channels.get(arrived[0]), arrived[1]
        takes = chan is not None and chan._recv_state == "open" and 0 < len(data) <= chan._recv_window
        return partial(chan._accept_data, data) if takes and chan._encoding is None else None
    if (asked := keepalive(plain)) is not None:
        chan = conn._channels.get(asked)
        idle = chan is not None and chan._recv_state in _HEARS_REQUESTS and not chan._request_queue
        if idle and chan._send_state == "open" and _sends_sealed(conn) and not _rekeys(conn):
            return partial(_decline, conn, chan)
    return None


def _widen(chan: Any, room: int, widened: dict[int, Any]) -> None:  # noqa: ANN401 - as above
    chan._send_window += room
    widened[chan._recv_chan] = chan


def _decline(conn: Any, chan: Any) -> None:  # noqa: ANN401 - as above
    """Answer a keepalive as asyncssh does: a failure is an answer too."""
    _send_one(conn, failure(chan._send_chan))


def _send_one(conn: Any, message: bytes) -> None:  # noqa: ANN401 - as above
    wire = sealed(_seal(conn._send_encryption._cipher), message)
    _count_sent(conn, 1, len(wire) - LENGTH - TAG)
    conn._send(wire)


def manage_window(chan: asyncssh.SSHTCPChannel[bytes]) -> bool:
    """Have asyncssh leave the agent's window on this channel to us; returns whether it does."""
    inner: Any = chan
    if _USABLE:
        inner._init_recv_window = 0  # asyncssh opens it when it is less than half of this
    return _USABLE


def widen(chan: asyncssh.SSHTCPChannel[bytes], room: int) -> None:
    """Let the agent send `room` bytes more."""
    inner: Any = chan
    conn: Any = inner._conn
    if conn is None or inner._recv_state != "open" or inner._send_chan is None:
        return
    inner._recv_window += room
    if inner._send_state == "open" and _sends_sealed(conn) and not _rekeys(conn):
        _send_one(conn, adjust(inner._send_chan, room))
    else:
        inner.send_packet(WINDOW_ADJUST, room.to_bytes(4))


def await_window(chan: asyncssh.SSHTCPChannel[bytes]) -> None:
    """Have asyncssh call the session's `resume_writing` once the agent's window opens.

    It does that only for a channel on which it has told the session to pause.
    """
    inner: Any = chan
    inner._send_paused = True


def exchanges_keys(protocol: object) -> bool:
    """Tell whether a key exchange is under way; asyncssh tells nobody, and puts aside what is written meanwhile."""
    return not getattr(protocol, "_kex_complete", True)


def let_go(protocol: asyncio.Protocol) -> None:
    """Break the references from a connection of asyncssh's that is over to itself, which only a collection would find.

    Its handler of what arrives next is a method of its own, and a key exchange that has not ended refers to it.
    """
    if isinstance(protocol, SSHClientConnection):
        conn: Any = protocol
        conn._recv_handler = _hears_nothing
        conn._kex = None


def _hears_nothing() -> bool:
    return False


def _seal(cipher: GCMCipher) -> Seal:
    """Return a direction's seal; asyncssh makes the key's schedule anew for each packet, here it is made once."""
    ready = _ciphers.get(cipher)
    if ready is None:
        ready = _ciphers[cipher] = AESGCM(cipher._key)
    return Seal(ready, cipher._iv)


def _sends_sealed(conn: Any) -> bool:  # noqa: ANN401 - private parts have no types that hold
    """Tell whether packets go out now, uncompressed, under AES-GCM (RFC 5647)."""
    encryption = conn._send_encryption
    return (
        conn._transport is not None
        and conn._auth_complete
        and conn._kex_complete
        and not conn._deferred_packets
        and conn._compressor is None
        and type(encryption) is GCMEncryption
        and type(encryption._cipher) is GCMCipher
    )


def _hears_sealed(conn: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether packets arrive now, uncompressed, under AES-GCM, with no key exchange begun."""
    encryption = conn._recv_encryption
    return (
        conn._auth_final
        and conn._kex is None
        and conn._kex_complete
        and conn._decompressor is None
        and type(encryption) is GCMEncryption
        and type(encryption._cipher) is GCMCipher
    )


def _between_packets(conn: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether asyncssh has worked off whole packets only, and waits for the next one's head."""
    return not conn._inpbuf and conn._recv_handler == conn._recv_pkthdr


def _wanted(conn: Any, available: int) -> int:  # noqa: ANN401 - as above
    """Return how many of the bytes are asyncssh's: those that make its packet whole, where that can be told."""
    if not _hears_sealed(conn):
        return available
    if conn._recv_handler == conn._recv_pkthdr:
        whole = conn._recv_blocksize
    elif conn._recv_handler == conn._recv_packet:
        whole = LENGTH + conn._pktlen + TAG - conn._recv_blocksize
    else:
        return available
    return max(1, min(available, int(whole) - len(conn._inpbuf)))


def _rekeys(conn: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a key exchange is due (RFC 4253, section 9); asyncssh's own next packet begins it."""
    return bool(
        conn._rekey_bytes_sent >= conn._rekey_bytes or (conn._rekey_seconds and time.monotonic() >= conn._rekey_time)
    )
