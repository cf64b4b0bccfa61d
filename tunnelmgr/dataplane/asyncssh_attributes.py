"""The private attributes of asyncssh that the fast path uses, declared as protocols.

mypy refuses the use of any attribute that is not declared here, so `ATTRIBUTES`, which is derived from the protocols,
is complete. `fast_path` examines each of them in the installed release.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import isfunction
from typing import Final, Protocol, cast, get_type_hints

import asyncssh


class Cipher(Protocol):
    """asyncssh's `GCMCipher`: the key of one direction, and the nonce of its next packet."""

    _key: bytes
    _iv: bytes


class Encryption(Protocol):
    """asyncssh's `GCMEncryption`."""

    _cipher: Cipher


class Channel(Protocol):
    """asyncssh's `SSHTCPChannel`: its windows, states and buffers."""

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
        """Send a packet that begins with the agent's number for the channel."""


class Connection(Protocol):
    """asyncssh's `SSHClientConnection`: its keys, counters and buffers."""

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
    """Return a class that asyncssh does not export, None if this release has no class of that name."""
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


@dataclass(frozen=True, slots=True)
class Attribute:
    """A private attribute, the protocol that declares it, and its declared type, which is `Callable` for a method."""

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
"""Everything that the fast path uses of asyncssh beyond its public API."""
