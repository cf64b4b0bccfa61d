"""What is known of asyncssh's inside, so that bulk data can go past it; the only file that touches private attributes.

asyncssh makes each packet with a dozen small objects and a new AES key schedule, puts an IGNORE before it, and sends
both with two system calls; a window adjust of forty bytes costs it as much as a packet of 32 KiB. So data to the agent
is sealed in batches (`packets`), and the agent's data and window adjusts are opened here, as asyncssh would do it.

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
from typing import Any, Final, NamedTuple

import asyncssh
from asyncssh.connection import SSHClientConnection
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnelmgr.tunnel.packets import (
    LARGEST,
    LENGTH,
    TAG,
    Opener,
    Seal,
    channel_data,
    lengths,
    packets,
    whole_packet,
    window_adjust,
)

PROVED: Final = frozenset({"2.24.1"})
"""The releases of asyncssh against which the contract tests have passed."""

LONGEST: Final = 40 * 1024
"""Bytes of the longest packet that is looked at here; only asyncssh reads longer ones."""

_TAKES_ADJUSTS: Final = frozenset({"open", "eof_pending", "eof"})
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
    cipher = conn._send_encryption._cipher
    return Outlet(Seal(cipher._key, cipher._iv), inner._send_chan, inner._send_window)


def window(chan: asyncssh.SSHTCPChannel[bytes]) -> int:
    """Return how many bytes of data the agent takes right now."""
    inner: Any = chan
    return int(inner._send_window)


def account(chan: asyncssh.SSHTCPChannel[bytes], count: int) -> None:
    """Take note of `count` bytes of data that go out in packets of ours.

    Called before they are sealed: whatever fails after this, no nonce is used twice (RFC 5647, section 7.1).
    """
    inner: Any = chan
    conn: Any = inner._conn
    cipher = conn._send_encryption._cipher
    number = packets(count)
    cipher._iv = Seal(cipher._key, cipher._iv).after(number)
    conn._send_seq = (conn._send_seq + number) & 0xFFFFFFFF
    conn._rekey_bytes_sent += lengths(count)
    inner._send_window -= count


def hear(protocol: asyncio.Protocol, wire: bytes) -> bytes:
    """Work off what has arrived: data and window adjusts of open channels here, all else in asyncssh.

    Returns the beginning of a packet that is not whole yet, which belongs before what arrives next.
    """
    conn: Any = protocol
    if not _USABLE or type(protocol) is not SSHClientConnection:
        protocol.data_received(wire)
        return b""
    left = memoryview(wire)
    while left and conn._transport is not None:
        if not (_hears_sealed(conn) and _between_packets(conn)):
            count = _wanted(conn, len(left))
        else:
            left = left[_work_off(conn, left) :]
            count = whole_packet(left)
            if count > LONGEST:
                count = len(left)
            elif not count or count > len(left):
                return bytes(left)
        protocol.data_received(bytes(left[:count]))
        left = left[count:]
    return b""


def _work_off(conn: Any, wire: memoryview) -> int:  # noqa: ANN401 - private parts have no types that hold
    """Work off the data and window adjusts at the front of `wire`; returns how many bytes they take."""
    cipher = conn._recv_encryption._cipher
    opener = Opener(Seal(cipher._key, cipher._iv))
    done, widened = 0, {}
    while done < len(wire) and 0 < (size := whole_packet(wire[done:])) <= min(len(wire) - done, LONGEST):
        plain = opener.open(wire[done : done + size])
        adjust = window_adjust(plain or b"")
        arrived = None if adjust else channel_data(plain or b"")
        if adjust is not None and (chan := _taking_adjusts(conn, adjust[0])) is not None:
            chan._send_window += adjust[1]
            widened[adjust[0]] = chan
        elif arrived is None or (chan := _taking_data(conn, *arrived)) is None:
            break
        opener.accept()
        done += size
        cipher._iv = opener.seal.nonce
        conn._recv_seq = (conn._recv_seq + 1) & 0xFFFFFFFF
        if arrived is not None:
            chan._accept_data(arrived[1])
    for chan in widened.values():
        chan._flush_send_buf()
    return done


def _taking_adjusts(conn: Any, number: int) -> Any:  # noqa: ANN401 - as above
    chan = conn._channels.get(number)
    return chan if chan is not None and chan._recv_state in _TAKES_ADJUSTS else None


def _taking_data(conn: Any, number: int, data: bytes) -> Any:  # noqa: ANN401 - as above
    chan = conn._channels.get(number)
    takes = chan is not None and chan._recv_state == "open" and 0 < len(data) <= chan._recv_window
    return chan if takes and chan._encoding is None else None


def await_window(chan: asyncssh.SSHTCPChannel[bytes]) -> None:
    """Have asyncssh call the session's `resume_writing` once the agent's window opens.

    It does that only for a channel on which it has told the session to pause.
    """
    inner: Any = chan
    inner._send_paused = True


def exchanges_keys(protocol: object) -> bool:
    """Tell whether a key exchange is under way; asyncssh tells nobody, and puts aside what is written meanwhile."""
    return not getattr(protocol, "_kex_complete", True)


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
    return max(1, min(available, whole - len(conn._inpbuf)))


def _rekeys(conn: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a key exchange is due (RFC 4253, section 9); asyncssh's own next packet begins it."""
    return bool(
        conn._rekey_bytes_sent >= conn._rekey_bytes or (conn._rekey_seconds and time.monotonic() >= conn._rekey_time)
    )
