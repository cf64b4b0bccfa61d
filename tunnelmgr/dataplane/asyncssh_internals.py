"""What is known of asyncssh's inside, so that bulk data can go past it; the only file that touches private attributes.

asyncssh makes each packet with a dozen small objects and a new AES key schedule, puts an IGNORE before it, and sends
both with two system calls; a window adjust of forty bytes costs it as much as a packet of 32 KiB. So data to the agent
is sealed in batches (`packets`), and the agent's data, window adjusts and keepalives are processed here, as asyncssh
would do it.

Correctness never rests on it:
- Nothing here is called unless `fast_path.fast_path_status()` has found the release proved and every attribute in
  `ATTRIBUTES` in its place. Otherwise asyncssh's public API does all the work.
- It is used only while the connection's state is exactly one that is known here; else `outlet` is None, and `hear`
  leaves all to asyncssh.
- It leaves the connection as if asyncssh had done the work: nonces, sequence numbers, windows, and the bytes counted
  towards the next key exchange, which asyncssh begins as ever.

The four protocols declare each attribute that is used, and mypy finds any use of another. So `ATTRIBUTES`, which is
read off them, is whole.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import isfunction
from typing import Final, NamedTuple, Protocol, cast, get_type_hints
from weakref import WeakKeyDictionary

import asyncssh
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
"""Bytes of the longest packet that is looked at here; only asyncssh reads longer ones."""
OPAQUE_PIECE_BYTES: Final = 4 * 1024
"""Bytes that asyncssh gets at a time where packets cannot be told apart here: at most 64 messages, or 4 ms."""
PACKETS_PER_TIME_CHECK: Final = 16
"""Packets that are processed between two looks at the time: about 0.1 ms."""


class Cipher(Protocol):
    """asyncssh's `GCMCipher`: one direction's key, and the nonce of its next packet."""

    _key: bytes
    _iv: bytes


class Encryption(Protocol):
    """asyncssh's `GCMEncryption`."""

    _cipher: Cipher


class Channel(Protocol):
    """asyncssh's `SSHTCPChannel`: its windows, its states, and what waits in it."""

    _conn: "Connection | None"
    _encoding: str | None
    _send_state: str
    _send_chan: int | None
    _send_window: int
    _send_pktsize: int
    _send_paused: bool
    _send_buf: list[object]
    _recv_state: str
    _recv_window: int
    _init_recv_window: int
    _request_queue: list[object]

    def _accept_data(self, data: bytes) -> None: ...

    def _flush_send_buf(self) -> None: ...

    def send_packet(self, pkttype: int, *args: bytes) -> None:
        """Send a packet that begins with the agent's number of the channel."""


class Connection(Protocol):
    """asyncssh's `SSHClientConnection`: its keys, its counters, and what waits in it."""

    _transport: asyncio.Transport | None
    _channels: dict[int, Channel]
    _auth_complete: bool
    _auth_final: bool
    _kex: object | None
    _kex_complete: bool
    _deferred_packets: list[object]
    _rekey_bytes: int
    _rekey_bytes_sent: int
    _rekey_seconds: float
    _rekey_time: float
    _send_encryption: Encryption | None
    _send_seq: int
    _compressor: object | None
    _recv_encryption: Encryption | None
    _recv_seq: int
    _recv_blocksize: int
    _recv_handler: Callable[[], bool]
    _decompressor: object | None
    _inpbuf: bytes
    _pktlen: int

    def _recv_pkthdr(self) -> bool: ...

    def _recv_packet(self) -> bool: ...

    def _send(self, data: bytes) -> None: ...


def _class(module: str, name: str) -> type | None:
    """Return a class that asyncssh does not export, None where this release has none of that name."""
    try:
        return cast("type | None", getattr(import_module(module), name, None))
    except ImportError:
        return None


CLASSES: Final[dict[type, type | None]] = {
    Cipher: _class("asyncssh.crypto.cipher", "GCMCipher"),
    Encryption: _class("asyncssh.encryption", "GCMEncryption"),
    Channel: asyncssh.SSHTCPChannel,
    Connection: asyncssh.SSHClientConnection,
}
"""Each protocol, and the class that it describes."""
_GCM_CIPHER, _GCM_ENCRYPTION = CLASSES[Cipher], CLASSES[Encryption]


@dataclass(frozen=True, slots=True)
class Attribute:
    """A private attribute, the protocol that declares it, and its declared type; that of a method is `Callable`."""

    owner: type
    name: str
    kind: object

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}"


def _attributes(owner: type) -> list[Attribute]:
    fields = [Attribute(owner, name, kind) for name, kind in get_type_hints(owner).items()]
    return fields + [
        Attribute(owner, name, Callable)
        for name, member in vars(owner).items()
        if isfunction(member) and not name.startswith("__")
    ]


ATTRIBUTES: Final = tuple(attribute for owner in CLASSES for attribute in _attributes(owner))
"""All that is used here of asyncssh beyond its public API."""

_ciphers: Final[WeakKeyDictionary[Cipher, AESGCM]] = WeakKeyDictionary()
_HEARS_REQUESTS: Final = frozenset({"open", "eof_pending", "eof"})
"""States of a channel whose other side may still say something about it (RFC 4254, section 5.3)."""


class SendState(NamedTuple):
    """How data goes out on a channel right now: under which seal, to which channel of the agent's, into what window."""

    seal: Seal
    channel: int
    window: int


def send_state(chan: asyncssh.SSHTCPChannel[bytes]) -> SendState | None:
    """Return how data goes out, None if only asyncssh may send it."""
    inner = cast("Channel", chan)
    conn = inner._conn
    if (
        conn is None
        or inner._send_state != "open"
        or inner._send_chan is None
        or inner._send_buf
        or inner._encoding is not None
        or inner._send_pktsize < PACKET_DATA_BYTES
        or _rekeys(conn)
        or (cipher := _sending_cipher(conn)) is None
    ):
        return None
    return SendState(_seal(cipher), inner._send_chan, inner._send_window)


def window(chan: asyncssh.SSHTCPChannel[bytes]) -> int:
    """Return how many bytes of data the agent takes right now."""
    return cast("Channel", chan)._send_window


def account(chan: asyncssh.SSHTCPChannel[bytes], count: int) -> None:
    """Take note of `count` bytes of data that go out in packets of ours.

    Called before they are sealed: whatever fails after this, no nonce is used twice (RFC 5647, section 7.1).
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
    """Process what has arrived: data, window adjusts and keepalives of open channels here, all else in asyncssh.

    Returns how many bytes were processed, and whether the rest can be processed at once: it was left because the step
    is `out_of_time`. Else the rest is the beginning of a packet that is not whole yet. Either way it belongs before
    what arrives next.
    """
    conn = cast("Connection", protocol)
    left = wire
    while left and conn._transport is not None:
        cipher = _hearing_cipher(conn)
        if cipher is None or not _between_packets(conn):
            count = min(_wanted(conn, cipher, len(left)), OPAQUE_PIECE_BYTES)
        else:
            left = left[_work_off(conn, cipher, left, out_of_time) :]
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


def _work_off(conn: Connection, cipher: Cipher, wire: memoryview, out_of_time: Callable[[], bool]) -> int:
    """Process the packets at the front of `wire` that are known here; return how many bytes they take."""
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
    """Return what a packet does, None if only asyncssh knows; channels whose window it opens go into `widened`."""
    if (opening := window_adjust(plain)) is not None:
        chan = conn._channels.get(opening[0])
        if chan is None or chan._recv_state not in _HEARS_REQUESTS:
            return None
        return partial(_widen, chan, opening, widened)
    if (arrived := channel_data(plain)) is not None:
        chan, data = conn._channels.get(arrived[0]), arrived[1]
        takes = chan is not None and chan._recv_state == "open" and 0 < len(data) <= chan._recv_window
        return partial(chan._accept_data, data) if takes and chan is not None and chan._encoding is None else None
    if (asked := keepalive(plain)) is not None:
        chan = conn._channels.get(asked)
        if chan is None or chan._recv_state not in _HEARS_REQUESTS or chan._request_queue:
            return None
        cipher = _sending_cipher(conn)
        if chan._send_state == "open" and chan._send_chan is not None and cipher is not None and not _rekeys(conn):
            return partial(_send_one, conn, cipher, failure(chan._send_chan))  # as asyncssh: a failure is an answer too
    return None


def _widen(chan: Channel, opening: tuple[int, int], widened: dict[int, Channel]) -> None:
    number, room = opening
    chan._send_window += room
    widened[number] = chan


def _send_one(conn: Connection, cipher: Cipher, message: bytes) -> None:
    wire = sealed(_seal(cipher), message)
    _count_sent(conn, cipher, 1, len(wire) - LENGTH_BYTES - TAG_BYTES)
    conn._send(wire)


def manage_window(chan: asyncssh.SSHTCPChannel[bytes]) -> None:
    """Have asyncssh leave the agent's window on this channel to us."""
    cast("Channel", chan)._init_recv_window = 0  # asyncssh opens it when it is less than half of this


def widen(chan: asyncssh.SSHTCPChannel[bytes], room: int) -> None:
    """Let the agent send `room` bytes more."""
    inner = cast("Channel", chan)
    conn = inner._conn
    if conn is None or inner._recv_state != "open" or inner._send_chan is None:
        return
    inner._recv_window += room
    cipher = _sending_cipher(conn)
    if inner._send_state == "open" and cipher is not None and not _rekeys(conn):
        _send_one(conn, cipher, adjust(inner._send_chan, room))
    else:
        inner.send_packet(WINDOW_ADJUST, room.to_bytes(4))


def await_window(chan: asyncssh.SSHTCPChannel[bytes]) -> None:
    """Have asyncssh call the session's `resume_writing` once the agent's window opens.

    It does that only for a channel on which it has told the session to pause.
    """
    cast("Channel", chan)._send_paused = True


def _seal(cipher: Cipher) -> Seal:
    """Return a direction's seal; asyncssh makes the key's schedule again for each packet, here it is made once."""
    ready = _ciphers.get(cipher)
    if ready is None:
        ready = _ciphers[cipher] = AESGCM(cipher._key)
    return Seal(ready, cipher._iv)


def _sending_cipher(conn: Connection) -> Cipher | None:
    """Return under what packets go out now, uncompressed; None if that is not AES-GCM (RFC 5647), or none may."""
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


def _hearing_cipher(conn: Connection) -> Cipher | None:
    """Return under what packets arrive now, uncompressed; None if not AES-GCM, or a key exchange has begun."""
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
    """Tell whether asyncssh has processed whole packets only, and waits for the next one's head."""
    return not conn._inpbuf and conn._recv_handler == conn._recv_pkthdr


def _wanted(conn: Connection, cipher: Cipher | None, available: int) -> int:
    """Return how many of the bytes are asyncssh's: those that make its packet whole, if that can be told."""
    if cipher is None:
        return available
    if conn._recv_handler == conn._recv_pkthdr:
        whole = conn._recv_blocksize
    elif conn._recv_handler == conn._recv_packet:
        whole = LENGTH_BYTES + conn._pktlen + TAG_BYTES - conn._recv_blocksize
    else:
        return available
    return max(1, min(available, whole - len(conn._inpbuf)))


def _rekeys(conn: Connection) -> bool:
    """Tell whether a key exchange is due (RFC 4253, section 9); asyncssh's own next packet begins it."""
    return conn._rekey_bytes_sent >= conn._rekey_bytes or (
        conn._rekey_seconds != 0 and time.monotonic() >= conn._rekey_time
    )


def break_cycles(protocol: asyncssh.SSHClientConnection) -> None:
    """Break the references from a connection of asyncssh's that is over to itself, which only a collection would find.

    Its handler of what arrives next is a method of its own, and a key exchange that has not ended refers to it.
    """
    conn = cast("Connection", protocol)
    conn._recv_handler = _takes_nothing
    conn._kex = None


def _takes_nothing() -> bool:
    return False
