"""Looking at the host key that an agent shows, without offering anything: the connection ends before any login."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import asyncssh

from tunnelmgr.config import CIPHERS
from tunnelmgr.core.agent import Agent
from tunnelmgr.core.plain import said
from tunnelmgr.errors import UnreachableError
from tunnelmgr.tunnel.admission import Admission, Permit
from tunnelmgr.tunnel.dialer import Dialer
from tunnelmgr.tunnel.ssh import FAULTS, HOST_KEY_ALGORITHMS, SAFE, algorithms_of
from tunnelmgr.tunnel.unwind import unwind

_CERTIFIED = (
    "ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
)


async def shown_key(
    agent: Agent,
    patience: float,
    ciphers: Sequence[str] = CIPHERS,
    permit: Permit | None = None,
    wanted: Sequence[str] = (),
) -> str:
    """Return the plain host key that the agent shows, as `type base64`; its signature is checked.

    `patience` is in seconds, without what `permit` takes. With `wanted`, only keys of the types of these are asked for.
    Raises UnreachableError.
    """
    look = _Look(patience, ciphers, permit or Admission().permit())
    blob = await _shown(agent, algorithms_of(wanted) or HOST_KEY_ALGORITHMS, look)
    size = int.from_bytes(blob[:4], "big")
    return f"{blob[4 : 4 + size].decode('ascii')} {base64.b64encode(blob).decode()}"


async def shown_certificate(
    agent: Agent, patience: float, ciphers: Sequence[str] = CIPHERS, permit: Permit | None = None
) -> bytes:
    """Return the blob of the host certificate that the agent shows, or of its plain key where it has none.

    The authority's signature in a certificate is checked; what it says is not. Raises UnreachableError.
    """
    look = _Look(patience, ciphers, permit or Admission().permit())
    return await _shown(agent, (*_CERTIFIED, *HOST_KEY_ALGORITHMS), look)


@dataclass(frozen=True, slots=True)
class _Look:
    """How a look is taken."""

    patience: float
    ciphers: Sequence[str]
    permit: Permit


async def _shown(agent: Agent, algorithms: Sequence[str], look: _Look) -> bytes:
    dialer = _LookingDialer(agent.addresses, look.patience)
    with look.permit as permit:
        await permit.dialling()
        try:
            await dialer.reach(agent.port)
            await permit.computing(dialer.heard)
            await _exchange_keys(agent, algorithms, look, dialer)
        finally:
            dialer.close()
    if dialer.blob is None:
        raise UnreachableError(f"{dialer.reached} port {agent.port}", "it showed no host key")
    return dialer.blob


async def _exchange_keys(agent: Agent, algorithms: Sequence[str], look: _Look, dialer: "_LookingDialer") -> None:
    where = f"{dialer.reached} port {agent.port}"
    try:
        async with asyncio.timeout(dialer.left):
            await asyncssh.get_server_host_key(
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
    except TimeoutError as late:
        unwind(late)
        raise UnreachableError(where, f"no answer within {look.patience:g} s") from late
    except FAULTS as failed:
        unwind(failed)
        raise UnreachableError(where, said(failed)) from failed


class _LookingDialer(Dialer):
    """Keeps the blob that the key exchange is signed with; asyncssh hands out only the key in a certificate."""

    blob: bytes | None = None

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], _host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect as ever, and look on at the key exchange."""

        def watched() -> asyncio.Protocol:
            protocol = factory()
            protocol.validate_server_host_key = self._look  # type: ignore[attr-defined]
            return protocol

        return await super().create_connection(watched, _host, port)

    def _look(self, blob: bytes) -> asyncssh.SSHKey:
        self.blob = blob
        size = int.from_bytes(blob[:4], "big")
        kind = blob[4 : 4 + size]
        line = kind + b" " + base64.b64encode(blob)
        try:
            if kind.endswith(b"-cert-v01@openssh.com"):
                return asyncssh.import_certificate(line).key
            return asyncssh.import_public_key(line)
        except (asyncssh.KeyImportError, ValueError) as odd:
            raise asyncssh.HostKeyNotVerifiable(str(odd)) from odd
