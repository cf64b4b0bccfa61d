"""Scanning the host key that an agent presents. No credentials are offered: the connection ends before any login."""

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
from tunnelmgr.core.sanitize import error_text
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.fast_path import free_connection
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.client import SAFE
from tunnelmgr.ssh.dialer import Dialer
from tunnelmgr.ssh.faults import FAULTS
from tunnelmgr.ssh.permit import UNLIMITED, DialPermit

MAX_RECORDED_BYTES: Final = 64 * 1024
"""Bytes of a server's first output that are kept: more than its first lines and two packets need."""
KEX_ECDH_REPLY: Final = 31
"""SSH_MSG_KEX_ECDH_REPLY (RFC 5656, section 4); no other message has this number in the key exchanges that we offer."""
_PACKET: Final = struct.Struct(">IBBI")
"""Packet length, padding length, message, length of the first field (RFC 4253, section 6)."""


async def scan_host_key(
    agent: Agent,
    patience: float,
    ciphers: Sequence[str] = CIPHERS,
    permit: DialPermit = UNLIMITED,
    wanted: Sequence[str] = (),
) -> str:
    """Return the plain host key that the agent presents, as `type base64`; its signature is checked.

    `patience` is in seconds, not counting the time that `permit` waits. With `wanted`, only keys of the same types as
    these are requested. Raises UnreachableError.
    """
    scan = _Scan(patience, ciphers, permit)
    blob = await _presented(agent, algorithms_of(wanted) or HOST_KEY_ALGORITHMS, scan)
    return key_from_blob(blob)


async def scan_host_certificate(
    agent: Agent, patience: float, ciphers: Sequence[str] = CIPHERS, permit: DialPermit = UNLIMITED
) -> bytes:
    """Return the blob of the host certificate that the agent presents, or of its plain key if it has no certificate.

    The authority's signature in a certificate is checked; its content is not. Raises UnreachableError.
    """
    scan = _Scan(patience, ciphers, permit)
    return await _presented(agent, (*HOST_CERTIFICATE_ALGORITHMS, *HOST_KEY_ALGORITHMS), scan)


@dataclass(frozen=True, slots=True)
class _Scan:
    """The limits of a scan: its deadline in seconds, the ciphers to offer, and the permission to dial."""

    patience: float
    ciphers: Sequence[str]
    permit: DialPermit


async def _presented(agent: Agent, algorithms: Sequence[str], scan: _Scan) -> bytes:
    dialer = _RecordingDialer(agent.addresses, scan.patience)
    with scan.permit as permit:
        await permit.acquire_place()
        try:
            await dialer.reach(agent.port)
            await permit.acquire_slot(dialer)
            return await _exchange_keys(agent, algorithms, scan, dialer)
        finally:
            dialer.close()


async def _exchange_keys(agent: Agent, algorithms: Sequence[str], scan: _Scan, dialer: "_RecordingDialer") -> bytes:
    where = f"{dialer.reached} port {agent.port}"
    try:
        async with asyncio.timeout(dialer.left):
            proved = await asyncssh.get_server_host_key(
                tunnel=cast("Any", dialer),  # the declared type has a close that asyncssh does not call
                host=dialer.reached,
                port=agent.port,
                config=None,
                server_host_key_algs=list(algorithms),
                # No login key: otherwise asyncssh reads those in ~/.ssh, and fails if one is invalid.
                options=asyncssh.SSHClientConnectionOptions(
                    client_keys=None, **{**SAFE, "encryption_algs": list(scan.ciphers)}
                ),
            )
            blob = dialer.presented(proved)
    except TimeoutError as late:
        clear_exception_frames(late)
        raise UnreachableError(where, f"no answer within {scan.patience:g} s") from late
    except FAULTS as failed:
        clear_exception_frames(failed)
        raise UnreachableError(where, error_text(failed)) from failed
    if blob is None:
        raise UnreachableError(where, "it presented no host key")
    return blob


class _RecordingDialer(Dialer):
    """Records the agent's side of the first key exchange: asyncssh returns only the key inside a certificate."""

    recorder: "_Recorder | None" = None

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], _host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect, with a recorder between the transport and asyncssh's protocol."""

        def recording() -> asyncio.Protocol:
            self.recorder = _Recorder(factory())
            return self.recorder

        transport, _ = await super().create_connection(recording, _host, port)
        if self.recorder is None:
            raise AssertionError("a transport without a protocol")
        return transport, self.recorder.inner

    def close(self) -> None:
        """Close the connection, and free asyncssh's part of it."""
        super().close()
        recorder, self.recorder = self.recorder, None  # asyncssh's connection refers to this dialer
        if recorder is not None:
            asyncio.get_running_loop().call_soon(free_connection, recorder.inner)

    def presented(self, proved: asyncssh.SSHKey | None) -> bytes | None:
        """Return the blob that was presented for the key which has signed the key exchange.

        A blob for any other key is not returned: an agent may send any key.
        """
        blob = None if self.recorder is None else presented_blob(bytes(self.recorder.received))
        if blob is None or proved is None:
            return None
        return blob if _key_of(blob).public_data == proved.public_data else None


class _Recorder(asyncio.Protocol):
    """Passes received bytes to asyncssh, and keeps the first, which are not encrypted (RFC 4253, section 6)."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.inner = inner
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass it on."""
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Keep it, up to the limit, and pass it on."""
        if len(self.received) < MAX_RECORDED_BYTES:
            self.received += data
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self.inner.connection_lost(exc)


def presented_blob(received: bytes) -> bytes | None:
    """Return the host key or certificate (K_S) in a server's first output, None if there is none.

    The output is an identification line, possibly after other lines (RFC 4253, section 4.2), and packets. The reply in
    an elliptic-curve key exchange begins with K_S (RFC 5656, section 4).
    """
    line, end, left = received.partition(b"\n")
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
    """Return the key, or the key in a certificate; raises ValueError if the blob is neither."""
    line = key_from_blob(blob)
    return asyncssh.import_certificate(line).key if is_certificate(blob) else asyncssh.import_public_key(line)
