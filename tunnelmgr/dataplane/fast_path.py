"""Whether bulk data may bypass asyncssh in this process; if not, the reasons.

The fast path uses private attributes of asyncssh (`asyncssh_attributes`). It is active only if the contract tests have
passed with the installed release, and if every attribute is found, with its declared type, on objects of asyncssh's own
classes. Otherwise channels, windows and reads go through asyncssh's public API, slower but within the same memory
bounds.

A new connection checks it once (`SshTransport.fast`); there is no check per packet.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

import asyncssh
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnelmgr.dataplane.asyncssh_attributes import (
    ATTRIBUTES,
    CLASSES,
    Attribute,
    Channel,
    Cipher,
    Connection,
    Encryption,
)
from tunnelmgr.dataplane.asyncssh_internals import OPAQUE_PIECE_BYTES, break_cycles, process_packets

VERIFIED_RELEASES: Final = frozenset({"2.24.1"})
"""Releases of asyncssh with which the contract tests have passed."""

Receive = Callable[[asyncio.Protocol, memoryview, Callable[[], bool]], tuple[int, bool]]
"""Passes received bytes to a protocol; for parameters and result see `asyncssh_internals.process_packets`."""


@dataclass(frozen=True, slots=True)
class FastPath:
    """Whether the fast path is active; if not, the reason."""

    active: bool
    reason: str | None = None


@cache
def fast_path_status() -> FastPath:
    """Examine the installed asyncssh and cryptography, once per process."""
    reason = next(_problems(), None)
    return FastPath(reason is None, reason)


def packet_processor(protocol: asyncio.Protocol) -> Receive:
    """Return the function that processes received bytes for a protocol."""
    return process_packets if fast_path_status().active and type(protocol) is asyncssh.SSHClientConnection else pass_on


def free_connection(protocol: asyncio.Protocol) -> None:
    """Free an ended connection at once; without the fast path, the next full garbage collection frees it."""
    if fast_path_status().active and type(protocol) is asyncssh.SSHClientConnection:
        break_cycles(protocol)


def pass_on(protocol: asyncio.Protocol, wire: memoryview, out_of_time: Callable[[], bool]) -> tuple[int, bool]:
    """Pass received bytes to the protocol in pieces, until the step is `out_of_time`."""
    left = wire
    while left:
        protocol.data_received(bytes(left[:OPAQUE_PIECE_BYTES]))
        left = left[OPAQUE_PIECE_BYTES:]
        if left and out_of_time():
            break
    return len(wire) - len(left), bool(left)


def _problems() -> Iterator[str]:
    """Yield the reasons against the fast path, the cheapest check first."""
    if asyncssh.__version__ not in VERIFIED_RELEASES:
        yield f"asyncssh {asyncssh.__version__} is not verified; verified: {', '.join(sorted(VERIFIED_RELEASES))}"
    if not hasattr(AESGCM, "encrypt_into"):
        yield "cryptography has no AESGCM.encrypt_into"
    # A bulkhead: asyncssh does not document these constructors; any exception is a reason.
    try:
        with _samples() as samples:
            yield from (f"asyncssh: {problem}" for problem in attribute_problems(ATTRIBUTES, samples))
    except Exception as error:  # noqa: BLE001
        yield f"asyncssh's classes cannot be instantiated as expected: {error!r}"


def attribute_problems(attributes: Iterable[Attribute], samples: dict[type, object]) -> Iterator[str]:
    """Yield the attributes that the samples, one for each owner, lack or have with another type than declared."""
    for attribute in attributes:
        try:
            value = getattr(samples[attribute.owner], attribute.name)
        except AttributeError:
            yield f"{attribute} is missing"
            continue
        if not _has_type(value, attribute.kind):
            yield f"{attribute} is of type {type(value).__name__}"


class _NullTransport(asyncio.Transport):
    """Discards what is written."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Discard it."""


_OPTIONS: Final[dict[str, Any]] = {
    "config": None,
    "client_keys": None,
    "agent_path": None,
    "gss_host": None,
    "known_hosts": ([], [], []),
    "host": "nowhere",
    "username": "nobody",
}
"""Nothing is read from the home directory or from an ssh-agent."""


@contextmanager
def _samples() -> Iterator[dict[type, object]]:
    """Make an object of each class, without a network; the loop that they require never runs."""
    classes: dict[type, Any] = {owner: described for owner, described in CLASSES.items() if described is not None}
    loop = asyncio.new_event_loop()
    try:
        connection = classes[Connection](loop, asyncssh.SSHClientConnectionOptions(**_OPTIONS))
        connection.connection_made(_NullTransport())  # a channel needs an open connection
        cipher = classes[Cipher]("aes128-gcm", bytes(16), bytes(12))
        yield {
            Connection: connection,
            Channel: classes[Channel](connection, loop, None, "strict", 1, 1),
            Cipher: cipher,
            Encryption: classes[Encryption](cipher),
        }
    finally:
        loop.close()


def _has_type(value: object, kind: Any) -> bool:  # noqa: ANN401 - a type as annotations have it
    """Return whether a value has a declared type; the items of containers are not examined."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(_has_type(value, one) for one in get_args(kind))
    if origin in CLASSES:
        origin = CLASSES[origin]
    if origin is float:
        origin = int | float
    return isinstance(value, origin) and not (isinstance(value, bool) and origin is int)
