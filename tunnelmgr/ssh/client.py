"""SSH connections to agents: dialled with safe options, and with asyncssh's errors translated to ours.

The package docstring lists the rules and their reasons.
"""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import asyncssh
import structlog

from tunnelmgr.config import CIPHERS
from tunnelmgr.core.host_key import HOST_KEY_ALGORITHMS, algorithms_of, fingerprint, key_from_blob
from tunnelmgr.core.sanitize import error_text, sanitize
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.dataplane.channel import ChannelOwner, ForwardedChannel, NoOwner
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.dataplane.receive_window import INITIAL_WINDOW_BYTES
from tunnelmgr.dataplane.socket_options import NetworkPath, network_path
from tunnelmgr.dataplane.transport import SshTransport
from tunnelmgr.errors import (
    AuthenticationError,
    ConnectionLostError,
    HostKeyMismatchError,
    ListenRefusal,
    ProbeTimeoutError,
    UnreachableError,
)
from tunnelmgr.ssh.dialer import Dialer
from tunnelmgr.ssh.faults import FAULTS
from tunnelmgr.ssh.key_powers import TIMEOUT, excess
from tunnelmgr.ssh.login import Identity, Login
from tunnelmgr.ssh.peer import LossObserver, Peer
from tunnelmgr.ssh.permit import UNLIMITED, DialPermit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

KEY_EXCHANGES = "-gss-*,curve448-*,diffie-hellman-*,rsa*"
"""Removed from asyncssh's list, which leaves X25519, ECDH, and ML-KEM with one of these."""
SAFE: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "config": None,
        "x509_trusted_certs": None,
        "agent_path": None,
        "agent_forwarding": False,
        "x11_forwarding": False,
        "password": None,
        "gss_host": None,
        "preferred_auth": "publickey",
        "disable_trivial_auth": True,
        "compression_algs": ["none"],
        "encryption_algs": list(CIPHERS),
        "kex_algs": KEY_EXCHANGES,
    }
)
"""Options of every connection, also of a host key scan."""
NO_OP_COMMAND: Final = ":"
"""A command that does nothing, in any shell."""
NO_OP_SESSION_TIMEOUT: Final = 5.0
"""Seconds to wait until the agent's sshd accepts the command."""
CHANNEL_OPEN_CPU_SECONDS: Final = 0.0002
"""CPU time that asyncssh uses to open a channel, in its own tasks and therefore not measured."""


class ListenerOwner(ChannelOwner, Protocol):
    """Decides on the channels of a listener, and serves them; `tunnel/sessions.py` implements it."""

    def admit_channel(self) -> None:
        """Admit one more channel; raises ChannelRefused to decline it."""
        ...


class Listener:
    """A listen address that the agent's sshd holds for us."""

    def __init__(self, endpoint: Endpoint, inner: asyncssh.SSHListener) -> None:
        self.endpoint = endpoint
        self._inner = inner

    def close(self) -> None:
        """Stop listening; open channels continue."""
        self._inner.close()

    async def closed(self) -> None:
        """Wait until the agent's sshd has confirmed the end, after which it opens no channel; or for the loss."""
        await self._inner.wait_closed()


class SshConnection:
    """A connection to an agent that has proved its host key and accepted our key."""

    def __init__(self, conn: asyncssh.SSHClientConnection, transport: SshTransport, peer: Peer, address: str) -> None:
        self._conn = conn
        self._transport = transport
        self._peer = peer
        self.address = address

    @property
    def ends(self) -> Ends:
        """Both addresses of the TCP connection."""
        return self._transport.ends

    @property
    def login_key(self) -> str:
        """The fingerprint of the login key that the agent accepted."""
        return self._peer.login_key

    @property
    def host_key(self) -> str:
        """The host key that the agent presented in the handshake, as `type base64`."""
        key = self._conn.get_server_host_key()
        if key is None:
            raise AssertionError("a connection without a host key")
        return key_from_blob(key.public_data)

    @property
    def lost(self) -> asyncio.Event:
        """Set once the connection is gone."""
        return self._peer.lost

    def notify_lost(self, observer: LossObserver) -> None:
        """Notify `observer` when the connection is lost."""
        self._peer.observer = observer

    @property
    def loss(self) -> str:
        """Why the connection was lost."""
        return self._peer.reason

    @property
    def throttled(self) -> bool:
        """Whether the agent floods the connection with no-op messages, and is being slowed down."""
        return self._transport.reader.throttled

    @property
    def exposed(self) -> bool:
        """Whether the agent's sshd has reported that it listens beyond loopback."""
        return self._peer.exposed

    @property
    def listen_refusal(self) -> ListenRefusal:
        """The reason that the agent's sshd gave when it refused a listener last."""
        return self._peer.listen_refusal

    async def listen(self, endpoint: Endpoint, owner: ListenerOwner) -> Listener | None:
        """Ask the agent's sshd to listen on exactly this literal address; None if it refuses, see `listen_refusal`."""
        self._peer.listen_refusal = ListenRefusal.UNKNOWN

        async def accept(
            _host: str, _port: int
        ) -> ForwardedChannel:  # a coroutine: otherwise asyncssh leaks the channel
            self._transport.share.charge(CHANNEL_OPEN_CPU_SECONDS)
            try:
                owner.admit_channel()
            except ChannelRefused as refused:
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, str(refused)) from refused
            return ForwardedChannel(self._transport, owner)

        try:
            inner = await self._conn.create_server(accept, endpoint.host, endpoint.port, window=INITIAL_WINDOW_BYTES)
        except asyncssh.ChannelListenError:
            inner = None
        except FAULTS as failed:
            raise ConnectionLostError(
                f"the connection ended while binding {endpoint}: {error_text(failed)}"
            ) from failed
        if self.lost.is_set():
            raise ConnectionLostError(f"the connection was lost: {self.loss}")
        return None if inner is None else Listener(endpoint, inner)

    async def connect(self, endpoint: Endpoint) -> ForwardedChannel:
        """Connect from the agent to `endpoint` there, and return the stream.

        Raises ConnectionRefusedError if the agent cannot or may not connect, and ConnectionLostError.
        """
        stream = ForwardedChannel(self._transport, NoOwner())
        try:
            await self._conn.create_connection(
                lambda: stream, endpoint.host, endpoint.port, window=INITIAL_WINDOW_BYTES
            )
        except asyncssh.ChannelOpenError as refused:
            if self.lost.is_set():  # asyncssh raises the same error for a refused channel and a lost connection
                raise ConnectionLostError(f"the connection was lost: {self.loss}") from refused
            raise ConnectionRefusedError(sanitize(refused.reason)) from refused
        except FAULTS as failed:
            raise ConnectionLostError(error_text(failed)) from failed
        return stream

    async def excess(self) -> tuple[str, ...]:
        """Return what the login key could do on the agent beyond what a tunnel needs; see `key_powers.py`.

        Raises ProbeTimeoutError if the agent does not answer, and ConnectionLostError.
        """
        try:
            found = await excess(self._conn)
        except TimeoutError as late:
            raise ProbeTimeoutError(TIMEOUT) from late
        if self.lost.is_set():  # which looks like a refusal
            raise ConnectionLostError(f"the connection was lost: {self.loss}")
        return found

    @property
    def path(self) -> NetworkPath:
        """The connection as the kernel sees it; raises ConnectionLostError."""
        try:
            return network_path(self._transport.get_extra_info("socket"))
        except OSError as gone:
            raise ConnectionLostError(f"the connection was lost: {self.loss}") from gone

    async def disable_nagle(self) -> bool:
        """Have the agent's sshd set TCP_NODELAY, which it does only when a session requests a command.

        Returns whether it permitted a session. The command does nothing and its end is not awaited; for a user with
        nologin or a forced command, it does not even run. If an sshd allows no sessions, everything that it sends is
        acknowledged at once instead.
        """
        session = NoOpSession()
        try:
            async with asyncio.timeout(NO_OP_SESSION_TIMEOUT):
                await self._conn.create_session(lambda: session, NO_OP_COMMAND, encoding=None)
            self._transport.reader.acknowledge_at_once = False
        except FAULTS as refused:  # a TimeoutError is one of them
            log.debug("session refused", address=self.address, reason=error_text(refused))
            return False
        finally:
            session.end()
        return True

    def abort(self) -> None:
        """Drop the connection now, with all data that the agent has not received yet."""
        self._transport.revoke()
        self._conn.abort()

    async def close(self, patience: float) -> bool:
        """Close in an orderly way, and drop the connection if that takes longer than `patience` seconds.

        Returns whether it was orderly, so that the agent's sshd lets go what it held for us.
        """
        self._conn.close()
        try:
            async with asyncio.timeout(patience):
                await self._peer.lost.wait()
        except TimeoutError:
            self._conn.abort()
            return False
        return True


class ChannelRefused(Exception):  # noqa: N818 - an answer, not a fault
    """Declines a new channel, with the reason as its message."""


class NoOpSession(asyncssh.SSHClientSession[bytes]):
    """A session whose command does nothing; its output is discarded."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Keep the channel, to close it."""
        self._channel = chan

    def end(self) -> None:
        """Close the channel, also if its request was not answered in time."""
        if self._channel is not None:
            self._channel.abort()


async def dial(spec: TunnelSpec, login: Login, permit: DialPermit = UNLIMITED) -> SshConnection:
    """Connect to an agent, prove its key, and log in.

    Takes at most `login.connect_timeout`, not counting the time that `permit` waits.

    Raises UnreachableError, HostKeyMismatchError, AuthenticationError, LoginKeyError or ConnectionLostError.
    """
    dialer = Dialer(spec.addresses, login.connect_timeout)
    await permit.acquire_place()
    # Without a key, dialling is useless. An ssh-agent is asked again later: its connection is not held while this waits
    # for the server.
    async with login.identities():
        pass
    try:
        await dialer.reach(spec.port)
        await permit.acquire_slot(dialer)
        async with login.identities() as offers:
            return await _shake_hands(spec, login, dialer, offers)
    finally:
        dialer.close()


async def _shake_hands(spec: TunnelSpec, login: Login, dialer: Dialer, offers: list[Identity]) -> SshConnection:
    peer = Peer(offers)
    keys = [asyncssh.import_public_key(key) for key in spec.trust.keys]
    where = f"{dialer.reached} port {spec.port}"
    try:
        async with asyncio.timeout(dialer.left):
            conn = await asyncssh.connect(
                dialer.reached,
                spec.port,
                tunnel=dialer,
                client_factory=lambda: peer,
                username=login.user,
                client_keys=offers[:1],
                known_hosts=(keys, [], []),
                host_key_alias=spec.agent,
                server_host_key_algs=host_key_algorithms(spec.trust.keys),
                login_timeout=login.connect_timeout,
                **{**SAFE, "encryption_algs": list(login.ciphers)},
            )
    except asyncssh.HostKeyNotVerifiable as refused:
        at = Endpoint(dialer.reached, spec.port)
        raise HostKeyMismatchError(_mismatch(spec, at, peer.presented_host_key)) from refused
    except asyncssh.PermissionDenied as refused:
        raise AuthenticationError(login.user, dialer.reached) from refused
    except TimeoutError as late:
        raise UnreachableError(where, f"no answer within {login.connect_timeout:g} s") from late
    except FAULTS as failed:
        raise UnreachableError(where, error_text(failed)) from failed
    if dialer.transport is None:
        raise AssertionError("a connection without a transport")
    return SshConnection(conn, dialer.transport, peer, dialer.reached)


def _mismatch(spec: TunnelSpec, at: Endpoint, presented: str) -> str:
    """Return the message for a host key that does not match the evidence."""
    shown = f"presented {fingerprint(presented)}" if presented else "presented another host key"
    expected = " or ".join(spec.trust.fingerprints) or "none"
    cause = (
        "the host_key in the configuration may be wrong, or another machine may have taken this address"
        if spec.trust.method is Method.PINNED
        else "another machine may have taken this address, or the agent was reinstalled"
    )
    return (
        f"host key mismatch: {at} {shown}, {spec.trust.method} evidence expects {expected}; {cause}. "
        f'Investigate, then run: tunnelmgr release {spec.agent} --reason "…"'
    )


def host_key_algorithms(keys: tuple[str, ...]) -> list[str]:
    """Return every supported algorithm, those of the expected keys first."""
    expected = algorithms_of(keys)
    return [*expected, *(name for name in HOST_KEY_ALGORITHMS if name not in expected)]
