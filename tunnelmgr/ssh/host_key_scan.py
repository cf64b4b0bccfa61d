"""Looking at the host key that an agent shows, without offering anything: the connection ends before any login."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import asyncssh

from tunnelmgr.config import CIPHERS
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.host_key import (
    HOST_CERTIFICATE_ALGORITHMS,
    HOST_KEY_ALGORITHMS,
    algorithms_of,
    is_certificate,
    key_from_blob,
)
from tunnelmgr.core.sanitize import said
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.fast_path import free_connection
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.client import FAULTS, SAFE
from tunnelmgr.ssh.dialer import Dialer
from tunnelmgr.ssh.permit import UNLIMITED, DialPermit

BEGINNING: Final = 64 * 1024
"""Bytes of what a server says that are kept: more than its first lines and two of its packets need."""
KEX_ECDH_REPLY: Final = 31
"""SSH_MSG_KEX_ECDH_REPLY (RFC 5656, section 4); the only messages of this number in the key exchanges that we offer."""
_PACKET: Final = struct.Struct(">IBBI")
"""Packet length, padding length, message, length of the first field (RFC 4253, section 6)."""


async def shown_key(
    agent: Agent,
    patience: float,
    ciphers: Sequence[str] = CIPHERS,
    permit: DialPermit = UNLIMITED,
    wanted: Sequence[str] = (),
) -> str:
    """Return the plain host key that the agent shows, as `type base64`; its signature is checked.

    `patience` is in seconds, without what `permit` takes. With `wanted`, only keys of the types of these are asked for.
    Raises UnreachableError.
    """
    look = _Look(patience, ciphers, permit)
    blob = await _shown(agent, algorithms_of(wanted) or HOST_KEY_ALGORITHMS, look)
    return key_from_blob(blob)


async def shown_certificate(
    agent: Agent, patience: float, ciphers: Sequence[str] = CIPHERS, permit: DialPermit = UNLIMITED
) -> bytes:
    """Return the blob of the host certificate that the agent shows, or of its plain key where it has none.

    The authority's signature in a certificate is checked; what it says is not. Raises UnreachableError.
    """
    look = _Look(patience, ciphers, permit)
    return await _shown(agent, (*HOST_CERTIFICATE_ALGORITHMS, *HOST_KEY_ALGORITHMS), look)


@dataclass(frozen=True, slots=True)
class _Look:
    """How a look is taken."""

    patience: float
    ciphers: Sequence[str]
    permit: DialPermit


async def _shown(agent: Agent, algorithms: Sequence[str], look: _Look) -> bytes:
    dialer = _LookingDialer(agent.addresses, look.patience)
    with look.permit as permit:
        await permit.acquire_place()
        try:
            await dialer.reach(agent.port)
            await permit.acquire_slot(dialer)
            return await _exchange_keys(agent, algorithms, look, dialer)
        finally:
            dialer.close()


async def _exchange_keys(agent: Agent, algorithms: Sequence[str], look: _Look, dialer: "_LookingDialer") -> bytes:
    where = f"{dialer.reached} port {agent.port}"
    try:
        async with asyncio.timeout(dialer.left):
            proved = await asyncssh.get_server_host_key(
                tunnel=cast("Any", dialer),  # the type wants a close that asyncssh does not call
                host=dialer.reached,
                port=agent.port,
                config=None,
                server_host_key_algs=list(algorithms),
                # No key at all: without this, asyncssh reads those in ~/.ssh, and fails where one is odd.
                options=asyncssh.SSHClientConnectionOptions(
                    client_keys=None, **{**SAFE, "encryption_algs": list(look.ciphers)}
                ),
            )
            blob = dialer.shown(proved)
    except TimeoutError as late:
        clear_exception_frames(late)
        raise UnreachableError(where, f"no answer within {look.patience:g} s") from late
    except FAULTS as failed:
        clear_exception_frames(failed)
        raise UnreachableError(where, said(failed)) from failed
    if blob is None:
        raise UnreachableError(where, "it showed no host key")
    return blob


class _LookingDialer(Dialer):
    """Keeps what the agent says in the first key exchange; asyncssh hands out only the key in a certificate."""

    overheard: "_Overhearing | None" = None

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], _host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect as ever, and listen to the key exchange."""

        def listening() -> asyncio.Protocol:
            self.overheard = _Overhearing(factory())
            return self.overheard

        transport, _ = await super().create_connection(listening, _host, port)
        if self.overheard is None:
            raise AssertionError("a line without a protocol")
        return transport, self.overheard.inner

    def close(self) -> None:
        """Close the connection, and free what asyncssh had of it."""
        super().close()
        overheard, self.overheard = self.overheard, None  # asyncssh's connection holds this dialer
        if overheard is not None:
            asyncio.get_running_loop().call_soon(free_connection, overheard.inner)

    def shown(self, proved: asyncssh.SSHKey | None) -> bytes | None:
        """Return the certificate or key that was shown for the key with which the key exchange was signed.

        Of what else an agent may have sent, nothing is returned: its blob would be for another key.
        """
        blob = None if self.overheard is None else host_key_shown(bytes(self.overheard.heard))
        if blob is None or proved is None:
            return None
        return blob if _key_of(blob).public_data == proved.public_data else None


class _Overhearing(asyncio.Protocol):
    """Passes on to asyncssh what arrives, and keeps its beginning, which is not encrypted (RFC 4253, section 6)."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.inner = inner
        self.heard = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass it on."""
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Keep it, up to a bound, and pass it on."""
        if len(self.heard) < BEGINNING:
            self.heard += data
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self.inner.connection_lost(exc)


def host_key_shown(heard: bytes) -> bytes | None:
    """Return the host key or certificate (K_S) in what a server says first, None if there is none.

    That is an identification line, perhaps after other lines (RFC 4253, section 4.2), and packets; the one that replies
    to our part of an elliptic key exchange begins with K_S (RFC 5656, section 4).
    """
    line, end, left = heard.partition(b"\n")
    while end and not line.startswith(b"SSH-"):
        line, end, left = left.partition(b"\n")
    while len(left) > _PACKET.size:
        length, _, message, size = _PACKET.unpack_from(left)
        if message == KEX_ECDH_REPLY:
            blob = left[_PACKET.size :][:size]
            return blob if len(blob) == size and _PACKET.size + size <= 4 + length else None
        left = left[4 + length :]
    return None


def _key_of(blob: bytes) -> asyncssh.SSHKey:
    """Return the key in a certificate, or the key; raises ValueError where it is neither."""
    line = key_from_blob(blob)
    return asyncssh.import_certificate(line).key if is_certificate(blob) else asyncssh.import_public_key(line)
