"""An agent on loopback: an SSH server as well-behaved or as hostile as a test needs.

Its remote forwards are real listeners and its connections real ones; its requests are recorded.
"""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import asyncssh

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec

OVERRIDDEN = 'Forwarding listen address "127.0.0.1" overridden by server GatewayPorts'
"""What OpenSSH's sshd says before it listens on every address (channels.c)."""


@dataclass
class Sshd:
    """The server's behaviour, which may be changed while it runs, and a record of the requests."""

    key: asyncssh.SSHKey
    accepts: asyncssh.SSHKey
    more_keys: tuple[asyncssh.SSHKey, ...] = ()
    port: int = 0
    accepts_everyone: bool = False
    exposes: bool = False
    refuses: set[Endpoint] = field(default_factory=set)
    refusal_message: str = ""
    swallows: set[Endpoint] = field(default_factory=set)
    reroute: Endpoint | None = None
    permits: set[Endpoint] | None = None
    """The addresses to which the key is restricted, None if it is not; other requests are refused, and not recorded."""
    on_listen: Callable[[], object] = field(default=lambda: None)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    connections: list[asyncssh.SSHServerConnection] = field(default_factory=list)
    logins_started: int = 0
    opens_requested: int = 0
    users: list[str] = field(default_factory=list)
    offered: list[str] = field(default_factory=list)
    asked: list[Endpoint] = field(default_factory=list)
    cancelled: list[Endpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Answer channel opens until a test clears `answers`."""
        self.answers.set()

    @property
    def host_key(self) -> str:
        """The public host key as `type base64`."""
        return public(self.key)

    @property
    def connection(self) -> asyncssh.SSHServerConnection:
        """The latest connection."""
        return self.connections[-1]

    def cut(self) -> None:
        """Drop every connection, as a crash would."""
        for connection in self.connections:
            connection.abort()

    def spec(self, *forwards: Forward, keys: Sequence[str] | None = None, port: int | None = None) -> TunnelSpec:
        """Return a tunnel to this server, by default with its own key as evidence."""
        return TunnelSpec(
            agent=AgentId("static:builder-1"),
            incarnation="1",
            name="builder-1",
            group="ci",
            addresses=("127.0.0.1",),
            port=port or self.port,
            forwards=forwards,
            trust=HostTrust(Method.PINNED, (self.host_key,) if keys is None else tuple(keys)),
        )

    def agent(self) -> Agent:
        """Return the agent that this server is."""
        return Agent(AgentId("static:builder-1"), "1", "office", "ci", "builder-1", ("127.0.0.1",), self.port)


class _Server(asyncssh.SSHServer):
    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._sshd.connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        self._sshd.logins_started += 1
        self._sshd.users.append(username)
        return not self._sshd.accepts_everyone

    def password_auth_supported(self) -> bool:
        return True

    def kbdint_auth_supported(self) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002 - asyncssh's form
        self._sshd.offered.append(public(key))
        return public(key) == public(self._sshd.accepts)

    async def server_requested(self, listen_host: str, listen_port: int) -> asyncssh.SSHListener | None:
        endpoint = Endpoint(listen_host, listen_port)
        if self._sshd.permits is not None and endpoint not in self._sshd.permits:
            return None
        self._sshd.asked.append(endpoint)
        if self._sshd.exposes:
            self._sshd.connection.send_debug(OVERRIDDEN)
        if endpoint in self._sshd.refuses:
            if self._sshd.refusal_message:
                self._sshd.connection.send_debug(self._sshd.refusal_message)
            return None
        inner = await self._sshd.connection.forward_local_port(listen_host, listen_port, listen_host, listen_port)
        self._sshd.on_listen()
        return _RecordingListener(inner, lambda: self._sshd.cancelled.append(endpoint))

    def connection_requested(
        self,
        dest_host: str,
        dest_port: int,
        orig_host: str,  # noqa: ARG002 - asyncssh's form
        orig_port: int,  # noqa: ARG002
    ) -> Awaitable[asyncssh.SSHTCPSession[bytes]]:
        return self._connected(dest_host, dest_port)

    async def _connected(self, host: str, port: int) -> asyncssh.SSHTCPSession[bytes]:
        if self._sshd.permits is not None and Endpoint(host, port) not in self._sshd.permits:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
        self._sshd.opens_requested += 1
        # Waits until the test sets `answers`.
        await self._sshd.answers.wait()
        if Endpoint(host, port) in self._sshd.swallows:
            await asyncio.Event().wait()
        to = self._sshd.reroute or Endpoint(host, port)
        return await self._sshd.connection.forward_connection(to.host, to.port)


class _RecordingListener(asyncssh.SSHListener):
    """A listener that records its close."""

    def __init__(self, inner: asyncssh.SSHListener, on_close: Callable[[], None]) -> None:
        super().__init__()
        self._inner = inner
        self._on_close = on_close

    def close(self) -> None:
        self._on_close()
        self._inner.close()

    async def wait_closed(self) -> None:
        await self._inner.wait_closed()


def public(key: asyncssh.SSHKey) -> str:
    """Return a key's public half as `type base64`."""
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


def generate(kind: str = "ssh-ed25519") -> asyncssh.SSHKey:
    """Return a fresh key."""
    return asyncssh.generate_private_key(kind)


@asynccontextmanager
async def running_sshd(sshd: Sshd, host: str = "127.0.0.1", **options: object) -> AsyncIterator[Sshd]:
    """Run the server on a free port, with additional options of asyncssh."""
    keys = [sshd.key, *sshd.more_keys]
    acceptor = await asyncssh.create_server(
        lambda: _Server(sshd), host, sshd.port, server_host_keys=keys, config=None, **options
    )
    sshd.port = acceptor.get_port()
    try:
        yield sshd
    finally:
        sshd.answers.set()
        sshd.cut()
        acceptor.close()
        await acceptor.wait_closed()
        for connection in sshd.connections:
            await connection.wait_closed()


@asynccontextmanager
async def running_tcp_server(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int = 0
) -> AsyncIterator[Endpoint]:
    """Run a TCP server on loopback; handlers that still run at the end are cancelled."""
    async with asyncio.TaskGroup() as tasks:
        serving: set[asyncio.Task[None]] = set()
        over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if over.is_set():  # it arrived before the end, but is accepted only now
                writer.close()
                return
            serving.add(tasks.create_task(serve(reader, writer), name="served"))

        server = await asyncio.start_server(accepted, "127.0.0.1", port)
        try:
            yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            over.set()
            server.close()
            for task in serving:
                task.cancel()
            await asyncio.sleep(0)


def free_port() -> int:
    """Return a port on which nothing listens, from below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randint(12_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def forward(*hosts: str, protocol: str = "registry") -> Forward:
    """Return a forward that listens on the same free port of each loopback host."""
    port = free_port()
    listen = tuple(Endpoint(host, port) for host in hosts or ("127.0.0.1",))
    return Forward("registry", listen, Endpoint("127.0.0.1", 5000), "tcp" if protocol == "tcp" else "registry")
