"""The door to asyncssh: every connection is dialled here, with every safe option, and its errors become ours.

Rules, each with the reason measured:
- `known_hosts` is always the triple (keys, authorities, revoked): an empty anything else falls back to files in the
  home directory, and None accepts anybody.
- Exactly our own key is offered: without `client_keys`, asyncssh offers whatever lies in ~/.ssh or in an agent.
- No compression: a server that offers only zlib is obeyed by default, and it can send a bomb.
- Key exchanges are elliptic ones: a server chooses when and how often, and one with 8192 bits takes the loop 0.1 s.
- What an agent wrote goes through `plain` before it is part of an error.
- Every type of host key is asked for, the expected ones first, so that a stranger shows the key it has and is known
  for a stranger.
"""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import asyncssh
import structlog

from tunnelmgr.config import CIPHERS
from tunnelmgr.core.host_key import HOST_KEY_ALGORITHMS, algorithms_of, key_from_blob
from tunnelmgr.core.sanitize import plain, said
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.dataplane.receive_window import INITIAL_WINDOW_BYTES
from tunnelmgr.dataplane.transport import SshTransport
from tunnelmgr.errors import (
    AuthenticationError,
    ConnectionLostError,
    HostKeyMismatchError,
    UnreachableError,
)
from tunnelmgr.ssh.dialer import Dialer
from tunnelmgr.ssh.login import Identity, Login, identity_print
from tunnelmgr.ssh.permit import UNLIMITED, DialPermit

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

KEY_EXCHANGES = "-gss-*,curve448-*,diffie-hellman-*,rsa*"
"""What is taken away from asyncssh's list; the others there are X25519, ECDH, and ML-KEM with one of these."""
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
"""What holds for every connection, whatever it is for."""
FAULTS = (
    asyncssh.Error,
    OSError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What asyncssh raises: its own errors, and whatever its parser trips over in what a server sends."""
NOTHING: Final = ":"
"""A command that does nothing, in any shell."""
QUICKEN: Final = 5.0
"""Seconds that the request for it may take."""
OPENING: Final = 0.0002
"""Seconds of CPU time that asyncssh uses for each channel that is opened: in tasks of its own, so not measured."""
EXPOSED = "overridden by server GatewayPorts"
"""What sshd says in a debug message when it listens on every address in spite of the request (channels.c)."""


class Listener:
    """A listen address that the agent's sshd holds for us."""

    def __init__(self, endpoint: Endpoint, inner: asyncssh.SSHListener) -> None:
        self.endpoint = endpoint
        self._inner = inner

    def close(self) -> None:
        """Stop listening; channels that are open go on."""
        self._inner.close()


class SshConnection:
    """A connection to an agent that has proved its key and accepted ours."""

    def __init__(self, conn: asyncssh.SSHClientConnection, line: SshTransport, peer: "Peer", address: str) -> None:
        self._conn = conn
        self._transport = line
        self._peer = peer
        self.address = address

    @property
    def ends(self) -> Ends:
        """Both addresses of the TCP connection."""
        return self._transport.ends

    @property
    def login_key(self) -> str:
        """The fingerprint of the key that the agent took."""
        return self._peer.login_key

    @property
    def host_key(self) -> str:
        """The key that the agent has shown in the handshake, as `type base64`."""
        key = self._conn.get_server_host_key()
        if key is None:
            raise AssertionError("a connection without a host key")
        return key_from_blob(key.public_data)

    @property
    def lost(self) -> asyncio.Event:
        """Set once the connection is gone."""
        return self._peer.lost

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Call `tell` once the connection is gone."""
        self._peer.tell = tell

    @property
    def loss(self) -> str:
        """Why it is gone."""
        return self._peer.reason

    @property
    def throttled(self) -> bool:
        """Tell whether the agent sends more than can be worked off without harm to others, and is being slowed."""
        return self._transport.throttled

    @property
    def exposed(self) -> bool:
        """Tell whether the agent's sshd has said that it listens beyond loopback."""
        return self._peer.exposed

    async def listen(
        self,
        endpoint: Endpoint,
        admit: Callable[[], None],
        on_open: Callable[[ForwardedChannel], None],
        on_end: Callable[[], None],
    ) -> Listener | None:
        """Ask the agent's sshd to listen on exactly this literal address; None where it will not.

        `admit` is called for each new channel and raises ChannelRefused to decline it.
        """

        async def accept(_host: str, _port: int) -> ForwardedChannel:  # a coroutine: asyncssh leaks the channel else
            self._transport.share.charge(OPENING)
            try:
                admit()
            except ChannelRefused as refused:
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, str(refused)) from refused
            return ForwardedChannel(self._transport, on_open, on_end)

        try:
            inner = await self._conn.create_server(accept, endpoint.host, endpoint.port, window=INITIAL_WINDOW_BYTES)
        except asyncssh.ChannelListenError:
            inner = None
        except FAULTS as failed:
            raise ConnectionLostError(f"the connection ended while binding {endpoint}: {said(failed)}") from failed
        if self.lost.is_set():
            raise ConnectionLostError(f"the connection was lost: {self.loss}")
        return None if inner is None else Listener(endpoint, inner)

    async def connect(self, endpoint: Endpoint) -> ForwardedChannel:
        """Connect from the agent to `endpoint` there, and return the stream.

        Raises ConnectionRefusedError where the agent cannot or may not connect, and ConnectionLostError.
        """
        stream = ForwardedChannel(self._transport, lambda _: None, lambda: None)
        try:
            await self._conn.create_connection(
                lambda: stream, endpoint.host, endpoint.port, window=INITIAL_WINDOW_BYTES
            )
        except asyncssh.ChannelOpenError as refused:
            if self.lost.is_set():  # asyncssh says the same of a channel that is refused and of one that is lost
                raise ConnectionLostError(f"the connection was lost: {self.loss}") from refused
            raise ConnectionRefusedError(plain(refused.reason)) from refused
        except FAULTS as failed:
            raise ConnectionLostError(said(failed)) from failed
        return stream

    async def disable_nagle(self) -> None:
        """Have the agent's sshd answer without Nagle's delay, which it turns off only once a session asks to run.

        What is asked for does nothing, and is not waited for; a user with nologin or a forced command runs not even
        that. It need not succeed: with an sshd that takes no sessions, all that it sends is acknowledged at once.
        """
        errand = NoOpSession()
        try:
            async with asyncio.timeout(QUICKEN):
                await self._conn.create_session(lambda: errand, NOTHING, encoding=None)
            self._transport.nagle_disabled()
        except FAULTS as refused:  # a TimeoutError is one of them
            log.debug("no session on the agent", address=self.address, reason=said(refused))
        finally:
            errand.end()

    def abort(self) -> None:
        """Drop the connection and all in it, now: what the agent has not got by then it does not get."""
        self._transport.revoke()
        self._conn.abort()

    async def close(self, patience: float) -> None:
        """Say goodbye, and drop the connection when that takes longer than `patience` seconds."""
        self._conn.close()
        try:
            async with asyncio.timeout(patience):
                await self._peer.lost.wait()
        except TimeoutError:
            self._conn.abort()


class ChannelRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A new channel is declined; the message says why."""


class NoOpSession(asyncssh.SSHClientSession[bytes]):
    """A session that wants nothing of the agent; what it prints is dropped."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Keep the channel, to close it."""
        self._channel = chan

    def end(self) -> None:
        """Close the channel, also one whose answer was not awaited."""
        if self._channel is not None:
            self._channel.abort()


class Peer(asyncssh.SSHClient):
    """Hears what the agent's sshd says outside of channels."""

    def __init__(self, offers: list[Identity]) -> None:
        self._offers = offers
        self._offered = 0
        self.lost = asyncio.Event()
        self.tell: Callable[[], None] = lambda: None
        self.reason = ""
        self.exposed = False

    def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:  # noqa: ARG002 - asyncssh's form
        """Note the one debug message that matters."""
        if EXPOSED in msg:
            self.exposed = True

    @property
    def login_key(self) -> str:
        """The fingerprint of the key that was offered last, which is the one that was taken."""
        return identity_print(self._offers[self._offered])

    def public_key_auth_requested(self) -> Any:  # noqa: ANN401 - asyncssh's type of a list of keys
        """Offer the next key once the one before is refused; asyncssh was given only the first."""
        if self._offered + 1 >= len(self._offers):
            return None
        self._offered += 1
        return [self._offers[self._offered]]

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end and its reason."""
        self.reason = said(exc) if exc else "the agent closed the connection"
        self.lost.set()
        self.tell()


async def dial(spec: TunnelSpec, login: Login, permit: DialPermit = UNLIMITED) -> SshConnection:
    """Connect to an agent, prove its key, and log in.

    All of it takes at most `login.connect_timeout`, beside what `permit` waits for.

    Raises UnreachableError, HostKeyMismatchError, AuthenticationError, LoginKeyError or ConnectionLostError.
    """
    dialer = Dialer(spec.addresses, login.connect_timeout)
    await permit.dialling()
    # Without a key there is no use in dialling; an ssh-agent is asked again later, so that none of its connections is
    # held while a server is waited for.
    async with login.identities():
        pass
    try:
        await dialer.reach(spec.port)
        await permit.computing(dialer.heard)
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
        raise HostKeyMismatchError(
            f"the machine at {where} holds another host key than {spec.trust.method} says "
            f"({' '.join(spec.trust.fingerprints)}): another machine has this address, or the agent was rebuilt; "
            "look, then `tunnelmgr release`"
        ) from refused
    except asyncssh.PermissionDenied as refused:
        raise AuthenticationError(login.user, dialer.reached) from refused
    except TimeoutError as late:
        raise UnreachableError(where, f"no answer within {login.connect_timeout:g} s") from late
    except FAULTS as failed:
        raise UnreachableError(where, said(failed)) from failed
    if dialer.line is None:
        raise AssertionError("a connection without a line")
    return SshConnection(conn, dialer.line, peer, dialer.reached)


def host_key_algorithms(keys: tuple[str, ...]) -> list[str]:
    """Return every algorithm that we take, those of the expected keys first."""
    expected = algorithms_of(keys)
    return [*expected, *(name for name in HOST_KEY_ALGORITHMS if name not in expected)]
