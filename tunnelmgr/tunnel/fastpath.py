"""What is known of asyncssh's inside, so that bulk data can go past it; the only file that touches private attributes.

asyncssh makes each packet with a dozen small objects and a new AES key schedule, puts an IGNORE before it, and sends
both with two system calls; a window adjust of forty bytes costs it as much as a packet of 32 KiB. So data to the agent
is sealed in batches (`packets`), and window adjusts are read in batches, both as if asyncssh had done it.

Correctness never rests on it:
- It is used only while the connection's state is exactly one that is known here; else `outlet` is None and `heard` is
  0, and asyncssh does the work.
- It leaves the connection as if asyncssh had done the work: nonces, sequence numbers, windows, and the bytes counted
  towards the next key exchange, which asyncssh begins as ever.
- Contract tests fail when asyncssh's attributes are no longer what is assumed here; in a release that is not in
  `PROVED` none of this is used.
"""

import time
from typing import Any, Final, NamedTuple

import asyncssh
from asyncssh.connection import SSHClientConnection
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnelmgr.tunnel.packets import ADJUST_SIZE, LARGEST, Seal, lengths, opened_adjusts, packets

PROVED: Final = frozenset({"2.24.1"})
"""The releases of asyncssh against which the contract tests have passed."""

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


def heard(protocol: object, data: bytes) -> int:
    """Work off the window adjusts at the front of `data`, which has just arrived; returns how many bytes they take."""
    conn: Any = protocol
    if not (_USABLE and isinstance(protocol, SSHClientConnection) and _hears_sealed(conn)):
        return 0
    cipher = conn._recv_encryption._cipher
    seal = Seal(cipher._key, cipher._iv)
    known, widened = 0, {}
    for channel, room in opened_adjusts(seal, data):
        chan = conn._channels.get(channel)
        if chan is None or chan._recv_state not in _TAKES_ADJUSTS:
            break
        chan._send_window += room
        widened[channel] = chan
        known += 1
    if known:
        cipher._iv = seal.after(known)
        conn._recv_seq = (conn._recv_seq + known) & 0xFFFFFFFF
    for chan in widened.values():
        chan._flush_send_buf()
    return known * ADJUST_SIZE


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
    """Tell whether what arrives now is whole packets, uncompressed, under AES-GCM, with no key exchange begun."""
    encryption = conn._recv_encryption
    return (
        conn._auth_final
        and conn._kex is None
        and conn._kex_complete
        and not conn._inpbuf
        and conn._recv_handler == conn._recv_pkthdr
        and conn._decompressor is None
        and type(encryption) is GCMEncryption
        and type(encryption._cipher) is GCMCipher
    )


def _rekeys(conn: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a key exchange is due (RFC 4253, section 9); asyncssh's own next packet begins it."""
    return bool(
        conn._rekey_bytes_sent >= conn._rekey_bytes or (conn._rekey_seconds and time.monotonic() >= conn._rekey_time)
    )
