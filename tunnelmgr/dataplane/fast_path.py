"""Whether bulk data may go past asyncssh in this process, and why not.

The fast path rests on private attributes of asyncssh (`asyncssh_internals`). It is on only if the installed release is
one with which the contract tests have passed, and if every attribute is found, with the type that is declared for it,
on objects of asyncssh's own classes. Otherwise channels, windows and reads go through asyncssh's public API, more
slowly and within the same bounds of memory.

Each new connection asks once (`SshTransport.fast`); nothing is asked for each packet.
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

from tunnelmgr.dataplane.asyncssh_internals import (
    ATTRIBUTES,
    CLASSES,
    OPAQUE_PIECE_BYTES,
    Attribute,
    Channel,
    Cipher,
    Connection,
    Encryption,
    break_cycles,
    process_packets,
)

VERIFIED_RELEASES: Final = frozenset({"2.24.1"})
"""The releases of asyncssh with which the contract tests have passed."""

Receive = Callable[[asyncio.Protocol, memoryview, Callable[[], bool]], tuple[int, bool]]
"""Hands to a protocol what has arrived, as `asyncssh_internals.hear` says."""


@dataclass(frozen=True, slots=True)
class FastPath:
    """Whether the fast path is on; if not, the reason."""

    active: bool
    reason: str | None = None


@cache
def fast_path_status() -> FastPath:
    """Examine the installed asyncssh and cryptography, once a process."""
    reason = next(_shortfalls(), None)
    return FastPath(reason is None, reason)


def packet_processor(protocol: asyncio.Protocol) -> Receive:
    """Return what processes that which arrives for a protocol."""
    return process_packets if fast_path_status().active and type(protocol) is asyncssh.SSHClientConnection else pass_on


def free_connection(protocol: asyncio.Protocol) -> None:
    """Free a connection that is over at once; while the fast path is off, the next collection frees it."""
    if fast_path_status().active and type(protocol) is asyncssh.SSHClientConnection:
        break_cycles(protocol)


def pass_on(protocol: asyncio.Protocol, wire: memoryview, out_of_time: Callable[[], bool]) -> tuple[int, bool]:
    """Hand all that has arrived to the protocol, a piece at a time, until the step is `out_of_time`."""
    left = wire
    while left:
        protocol.data_received(bytes(left[:OPAQUE_PIECE_BYTES]))
        left = left[OPAQUE_PIECE_BYTES:]
        if left and out_of_time():
            break
    return len(wire) - len(left), bool(left)


def _shortfalls() -> Iterator[str]:
    """Tell what is not as the fast path needs it, the cheapest look first."""
    if asyncssh.__version__ not in VERIFIED_RELEASES:
        yield f"asyncssh {asyncssh.__version__} is not proved; proved: {', '.join(sorted(VERIFIED_RELEASES))}"
    if not hasattr(AESGCM, "encrypt_into"):
        yield "cryptography has no AESGCM.encrypt_into"
    # A bulkhead: these are constructors that asyncssh does not document, and whatever they raise is the answer.
    try:
        with _samples() as samples:
            yield from (f"asyncssh: {odd}" for odd in misfits(ATTRIBUTES, samples))
    except Exception as odd:  # noqa: BLE001
        yield f"asyncssh's classes are not made as expected: {odd!r}"


def misfits(attributes: Iterable[Attribute], samples: dict[type, object]) -> Iterator[str]:
    """Tell which attributes the samples, one for each owner, lack or have with another type than the declared one."""
    for attribute in attributes:
        try:
            value = getattr(samples[attribute.owner], attribute.name)
        except AttributeError:
            yield f"{attribute} is missing"
            continue
        if not _fits(value, attribute.kind):
            yield f"{attribute} is of type {type(value).__name__}"


class _Nowhere(asyncio.Transport):
    """Takes what is written, and sends nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop it."""


_OPTIONS: Final[dict[str, Any]] = {
    "config": None,
    "client_keys": None,
    "agent_path": None,
    "gss_host": None,
    "known_hosts": ([], [], []),
    "host": "nowhere",
    "username": "nobody",
}
"""Nothing is read from the home directory or asked of an agent."""


@contextmanager
def _samples() -> Iterator[dict[type, object]]:
    """Make an object of each class, without a network; the loop that they want never runs."""
    classes: dict[type, Any] = {owner: asyncsshs for owner, asyncsshs in CLASSES.items() if asyncsshs is not None}
    loop = asyncio.new_event_loop()
    try:
        connection = classes[Connection](loop, asyncssh.SSHClientConnectionOptions(**_OPTIONS))
        connection.connection_made(_Nowhere())  # a channel needs a connection that stands
        cipher = classes[Cipher]("aes128-gcm", bytes(16), bytes(12))
        yield {
            Connection: connection,
            Channel: classes[Channel](connection, loop, None, "strict", 1, 1),
            Cipher: cipher,
            Encryption: classes[Encryption](cipher),
        }
    finally:
        loop.close()


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401 - a type as annotations have it
    """Tell whether a value is of a declared type, as far as that can be seen without looking into containers."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if origin in CLASSES:
        origin = CLASSES[origin]
    if origin is float:
        origin = int | float
    return isinstance(value, origin) and not (isinstance(value, bool) and origin is int)
