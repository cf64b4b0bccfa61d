"""Connections to agents, against servers that lie, hang or send invalid input."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, free_port, generate, public, running_sshd, running_tcp_server, until
from tunnelmgr.config import CIPHERS
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.dataplane.channel import NoOwner
from tunnelmgr.errors import (
    AuthenticationError,
    ConnectionLostError,
    HostKeyMismatchError,
    ListenRefusal,
    ListenRefusedError,
    UnreachableError,
)
from tunnelmgr.ssh.client import ChannelRefused, SshConnection, dial, host_key_algorithms
from tunnelmgr.ssh.host_key_scan import scan_host_key
from tunnelmgr.ssh.login import Login


@asynccontextmanager
async def dialled(spec: TunnelSpec, login: Login) -> AsyncIterator[SshConnection]:
    """Dial, and drop the connection at the end."""
    connection = await dial(spec, login)
    try:
        yield connection
    finally:
        connection.abort()
        await connection._conn.wait_closed()


def sockets() -> set[str]:
    """Return the sockets of this process."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


class AdmitAll(NoOwner):
    """Admits every channel, and serves none."""

    def admit_channel(self) -> None:
        """Admit it."""


class Decline(NoOwner):
    """Declines every channel."""

    def admit_channel(self) -> None:
        """Decline it."""
        raise ChannelRefused("full")


# --- the way in ---


async def test_the_expected_key_and_our_key_make_a_connection(sshd: Sshd, login: Login, key: asyncssh.SSHKey) -> None:
    """The agent sees the configured user and only our key."""
    async with dialled(sshd.spec(), login) as connection:
        assert connection.address == "127.0.0.1"
        assert not connection.lost.is_set()

    assert set(sshd.users) == {"tunnel"}
    assert set(sshd.offered) == {public(key)}


async def test_nothing_from_the_home_directory_or_an_agent_is_used(
    sshd: Sshd, login: Login, key: asyncssh.SSHKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hostile ~/.ssh and SSH_AUTH_SOCK, the agent is still offered only our key."""
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    ran = tmp_path / "ran"
    (folder / "config").write_text(
        f"Host *\n  User root\n  ProxyCommand touch {ran}\n  Compression yes\n  IdentityFile {folder}/id_rsa\n"
    )
    for name in ("id_ed25519", "id_rsa"):
        (folder / name).write_bytes(generate().export_private_key())
        (folder / name).chmod(0o600)
    asked = []
    sock = str(tmp_path / "agent.sock")
    agent = await asyncio.start_unix_server(lambda _reader, writer: (asked.append(1), writer.close()), sock)
    monkeypatch.setenv("SSH_AUTH_SOCK", sock)

    async with agent:
        async with dialled(sshd.spec(), login):
            pass
        # Refused, it has nothing else to offer either.
        sshd.accepts = generate()
        with pytest.raises(AuthenticationError):
            await dial(sshd.spec(), login)

    assert set(sshd.offered) == {public(key)}
    assert set(sshd.users) == {"tunnel"}
    assert asked == []
    assert not ran.exists()


async def test_without_evidence_no_host_key_is_accepted(sshd: Sshd, login: Login, tmp_path: Path) -> None:
    """Without evidence every host key is a mismatch, even one in ~/.ssh/known_hosts."""
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "known_hosts").write_text(
        f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n* {sshd.host_key}\nstatic:builder-1 {sshd.host_key}\n"
    )

    with pytest.raises(HostKeyMismatchError):
        await dial(sshd.spec(keys=()), login)

    assert sshd.logins_begun == 0


async def test_a_mismatch_is_found_before_the_login(sshd: Sshd, login: Login) -> None:
    """On a mismatch, neither a user nor a key is sent."""
    with pytest.raises(HostKeyMismatchError):
        await dial(sshd.spec(keys=[public(generate())]), login)

    assert sshd.logins_begun == 0
    assert sshd.offered == []


@pytest.mark.parametrize(("method", "cause"), [(Method.PINNED, "the host_key in the"), (Method.CONSOLE, "reinstalled")])
async def test_a_mismatch_shows_both_keys_the_address_and_the_command(
    sshd: Sshd, login: Login, method: Method, cause: str
) -> None:
    """The message has what was compared, its likely cause, and the complete command to run."""
    expected = public(generate())
    spec = sshd.spec()._replace(trust=HostTrust(method, (expected,)))

    with pytest.raises(HostKeyMismatchError) as mismatch:
        await dial(spec, login)

    message = str(mismatch.value)
    assert f"127.0.0.1:{sshd.port} presented {fingerprint(sshd.host_key)}" in message
    assert f"{method} evidence expects {fingerprint(expected)}" in message
    assert cause in message
    assert message.endswith('run: tunnelmgr release static:builder-1 --reason "…"')


@pytest.mark.parametrize("kind", ["ecdsa-sha2-nistp256", "ssh-rsa"])
async def test_a_host_key_of_another_type_is_a_mismatch(key: asyncssh.SSHKey, login: Login, kind: str) -> None:
    """A host key of another type than expected is a mismatch, and not a failed negotiation."""
    async with running_sshd(Sshd(generate(kind), key)) as sshd:
        with pytest.raises(HostKeyMismatchError):
            await dial(sshd.spec(keys=[public(generate())]), login)

    assert sshd.logins_begun == 0


@pytest.mark.parametrize("kind", ["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"])
async def test_every_type_of_host_key_can_be_the_expected_one(key: asyncssh.SSHKey, login: Login, kind: str) -> None:
    """An agent without an Ed25519 key can be dialled."""
    async with running_sshd(Sshd(generate(kind), key)) as sshd, dialled(sshd.spec(), login):
        assert len(sshd.connections) == 1


async def test_a_server_with_several_keys_presents_the_expected_one(key: asyncssh.SSHKey, login: Login) -> None:
    """The expected type is requested first, so evidence of one of several keys is enough."""
    rsa = generate("ssh-rsa")
    async with (
        running_sshd(Sshd(generate(), key, more_keys=(rsa, generate("ecdsa-sha2-nistp256")))) as sshd,
        dialled(sshd.spec(keys=[public(rsa)]), login) as connection,
    ):
        assert public(connection._conn.get_server_host_key()) == public(rsa)


def test_expected_types_come_first_and_none_is_left_out() -> None:
    """The expected key's algorithms come first, the others follow, and SHA-1 is not among them."""
    order = host_key_algorithms(("ssh-rsa AAAA",))

    assert order[:2] == ["rsa-sha2-512", "rsa-sha2-256"]
    assert set(order) == set(host_key_algorithms(()))
    assert "ssh-rsa" not in order


async def test_a_server_that_accepts_everyone_is_refused(sshd: Sshd, login: Login) -> None:
    """A server that accepts authentication `none` is refused."""
    sshd.accepts_everyone = True

    with pytest.raises(AuthenticationError):
        await dial(sshd.spec(), login)


async def test_a_key_that_is_not_accepted_is_an_authentication_error(sshd: Sshd, login: Login) -> None:
    """If our key is refused, the error names the user, and no password is tried."""
    sshd.accepts = generate()

    with pytest.raises(AuthenticationError, match="user tunnel"):
        await dial(sshd.spec(), login)


@pytest.mark.parametrize(
    ("option", "offer"),
    [
        ("compression_algs", ["zlib"]),
        ("compression_algs", ["zlib@openssh.com"]),
        ("encryption_algs", ["chacha20-poly1305@openssh.com"]),
        ("encryption_algs", ["aes128-cbc"]),
    ],
)
async def test_compression_and_weak_ciphers_are_not_negotiated(
    key: asyncssh.SSHKey, host_key: asyncssh.SSHKey, login: Login, option: str, offer: list[str]
) -> None:
    """A server that offers only compression or weak ciphers gets no connection."""
    async with running_sshd(Sshd(host_key, key), **{option: offer}) as sshd:
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(), login)
        with pytest.raises(UnreachableError):
            await scan_host_key(sshd.agent(), 5)

    assert sshd.logins_begun == 0


async def test_a_configured_cipher_is_offered(key: asyncssh.SSHKey, host_key: asyncssh.SSHKey, login: Login) -> None:
    """A configured cipher is offered by tunnels and by scans."""
    chacha = ("chacha20-poly1305@openssh.com",)
    async with running_sshd(Sshd(host_key, key), encryption_algs=list(chacha)) as sshd:
        assert await scan_host_key(sshd.agent(), 5, chacha) == sshd.host_key
        async with dialled(sshd.spec(), replace(login, ciphers=chacha)) as connection:
            assert connection._conn.get_extra_info("send_cipher") == chacha[0]


async def test_our_ciphers_are_negotiated_without_compression(sshd: Sshd, login: Login) -> None:
    """A server with every algorithm negotiates one of our ciphers without compression."""
    async with dialled(sshd.spec(), login) as connection:
        info = connection._conn.get_extra_info

        assert info("send_cipher") in CIPHERS
        assert info("recv_cipher") in CIPHERS
        assert info("send_compression") == info("recv_compression") == "none"


# --- the way in fails ---


async def test_a_silent_server_costs_one_timeout_and_leaves_nothing(sshd: Sshd, login: Login) -> None:
    """A dial to a silent server ends at its timeout, and leaves neither a socket nor a task."""
    silence = asyncio.Event()

    async def send_nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await silence.wait()

    async with running_tcp_server(send_nothing) as endpoint:
        before, tasks = sockets(), len(asyncio.all_tasks())

        with pytest.raises(UnreachableError, match=r"within 0\.3 s"):
            async with asyncio.timeout(5):
                await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=0.3))

        # What stays is the server's own half, until it notices.
        silence.set()
        await until(lambda: sockets() <= before)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_a_server_that_stops_within_the_handshake_is_unreachable_in_time(sshd: Sshd, login: Login) -> None:
    """The deadline covers the whole handshake, not only the first answer."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-slow\r\n")
        await asyncio.Event().wait()

    async with running_tcp_server(greet) as endpoint:
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=0.3))
        with pytest.raises(UnreachableError):
            await scan_host_key(replace(sshd.agent(), port=endpoint.port), 0.3)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100_000])
async def test_another_service_is_unreachable(sshd: Sshd, login: Login, said: bytes) -> None:
    """Whatever another service sends, the error is UnreachableError."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    async with running_tcp_server(talk) as endpoint:
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=1))


async def test_addresses_are_tried_in_order(sshd: Sshd, login: Login) -> None:
    """The first address that answers is connected to and reported."""
    spec = sshd.spec()._replace(addresses=("127.0.0.9", "127.0.0.1", "127.0.0.8"))

    async with dialled(spec, login) as connection:
        assert connection.address == "127.0.0.1"


async def test_an_address_that_drops_packets_leaves_time_for_the_next(sshd: Sshd, login: Login) -> None:
    """An address that drops packets uses only its part of the timeout."""
    with socket.socket() as full:
        # A listener whose queue is full answers no further SYN, as a firewall would.
        full.bind(("127.0.0.9", sshd.port))
        full.listen(0)
        with socket.socket() as first, socket.socket() as second:
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.9", sshd.port))
            spec = sshd.spec()._replace(addresses=("127.0.0.9", "127.0.0.1"))

            async with dialled(spec, replace(login, connect_timeout=2.0)) as connection:
                assert connection.address == "127.0.0.1"


async def test_an_address_whose_server_stays_silent_leaves_time_for_the_next(sshd: Sshd, login: Login) -> None:
    """An address whose server sends nothing uses only its part of the timeout."""
    with socket.create_server(("127.0.0.9", sshd.port)):
        spec = sshd.spec()._replace(addresses=("127.0.0.9", "127.0.0.1"))

        async with dialled(spec, replace(login, connect_timeout=2.0)) as connection:
            assert connection.address == "127.0.0.1"


async def test_no_address_that_answers_is_unreachable_with_the_last_reason(sshd: Sshd, login: Login) -> None:
    """If no address answers, the error names the last one and its reason."""
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.9 port \d+"):
        await dial(sshd.spec(port=free_port())._replace(addresses=("127.0.0.8", "127.0.0.9")), login)


# --- the scan for a first key ---


async def test_a_scan_returns_the_key_and_offers_nothing(sshd: Sshd, tmp_path: Path) -> None:
    """A scan ends before the login, and reads no key file in the home directory."""
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "id_ed25519").write_text("no key at all")

    assert await scan_host_key(sshd.agent(), 5) == sshd.host_key

    assert sshd.logins_begun == 0


async def test_a_scan_without_an_answer_is_unreachable(sshd: Sshd) -> None:
    """A scan without an address or a listener raises UnreachableError."""
    with pytest.raises(UnreachableError):
        await scan_host_key(replace(sshd.agent(), addresses=()), 1)
    with pytest.raises(UnreachableError):
        await scan_host_key(replace(sshd.agent(), port=free_port()), 1)


# --- listeners and exchanges ---


async def test_a_listener_is_requested_by_its_literal_address(sshd: Sshd, login: Login) -> None:
    """The agent gets exactly the configured address, because `permitlisten` compares strings."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        listener = await connection.listen(endpoint, AdmitAll())

        assert listener is not None
        assert sshd.asked == [endpoint]


async def test_a_refused_listener_is_none_and_the_connection_stays(sshd: Sshd, login: Login) -> None:
    """After a refusal the next address can be requested."""
    taken, free = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    sshd.refuses.add(taken)
    async with dialled(sshd.spec(), login) as connection:
        assert await connection.listen(taken, AdmitAll()) is None
        assert await connection.listen(free, AdmitAll()) is not None


@pytest.mark.parametrize(
    ("debug_message", "refusal", "advice"),
    [
        ("Server has disabled port forwarding.", ListenRefusal.DISABLED, "AllowTcpForwarding yes"),
        ("port forwarding refused", ListenRefusal.NOT_PERMITTED, 'permitlisten="127.0.0.1:5000"'),
        ("something else", ListenRefusal.UNKNOWN, "ss -ltnp"),
    ],
)
async def test_sshds_reason_for_refusing_a_listener_is_kept(
    sshd: Sshd, login: Login, debug_message: str, refusal: ListenRefusal, advice: str
) -> None:
    """The reason is that of the latest refusal, and each has its own advice."""
    refused, free = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    sshd.refuses.add(refused)
    sshd.refusal_message = debug_message
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(refused, AdmitAll())
        assert connection.listen_refusal is refusal
        assert advice in str(ListenRefusedError("127.0.0.1:5000", refusal))

        await connection.listen(free, AdmitAll())
        assert connection.listen_refusal is ListenRefusal.UNKNOWN


async def test_binding_on_a_lost_connection_says_that_it_was_lost(sshd: Sshd, login: Login) -> None:
    """Binding on a lost connection raises ConnectionLostError and is not taken for a refusal."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.cut()
        await until(connection.lost.is_set)

        with pytest.raises(ConnectionLostError):
            await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())


async def test_an_exposed_listener_is_detected(sshd: Sshd, login: Login) -> None:
    """The debug message about GatewayPorts sets `exposed` before `listen` returns."""
    sshd.exposes = True
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())

        assert connection.exposed


async def test_other_debug_messages_are_ignored(sshd: Sshd, login: Login) -> None:
    """Debug messages with control characters or other text change nothing."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection.send_debug("\x1b[2J\0 GatewayPorts " + "x" * 10_000)
        assert await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())

        assert not connection.exposed


async def test_a_declined_channel_leaves_nothing_behind(sshd: Sshd, login: Login) -> None:
    """The agent gets `resource shortage`, the connection stays, and asyncssh keeps no channel."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(endpoint, Decline())
        for _ in range(20):
            with pytest.raises(asyncssh.ChannelOpenError, match="full") as refused:
                await sshd.connection.open_connection(endpoint.host, endpoint.port)
            assert refused.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE

        await until(lambda: not connection._conn._channels)
        assert not connection.lost.is_set()


async def test_channels_for_other_ports_are_refused(sshd: Sshd, login: Login) -> None:
    """The agent cannot open channels to other ports, sessions, or sockets here."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(endpoint, AdmitAll())
        for host, port in (("127.0.0.1", 22), ("127.0.0.2", endpoint.port), ("", endpoint.port)):
            with pytest.raises(asyncssh.ChannelOpenError):
                await sshd.connection.open_connection(host, port)
        with pytest.raises(asyncssh.ChannelOpenError):
            await sshd.connection.open_unix_connection("/run/docker.sock")

        await until(lambda: not connection._conn._channels)
        assert not connection.lost.is_set()


async def test_a_stream_to_the_agent_carries_data_both_ways(sshd: Sshd, login: Login) -> None:
    """A stream carries data both ways, and leaves no channel behind."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4) + b"pong")
        await writer.drain()

    async with running_tcp_server(answer) as endpoint, dialled(sshd.spec(), login) as connection:
        stream = await connection.connect(endpoint)
        await stream.write(b"ping")
        got = b""
        while more := await stream.read():
            got += more
        stream.abort()
        await until(lambda: not connection._conn._channels)

    assert got == b"pingpong"


async def test_a_stream_that_the_agent_declines_is_a_refusal(sshd: Sshd, login: Login) -> None:
    """A refused stream raises ConnectionRefusedError, unlike a lost connection."""
    async with dialled(sshd.spec(), login) as connection:
        with pytest.raises(ConnectionRefusedError):
            await connection.connect(Endpoint("127.0.0.1", free_port()))


async def test_a_connection_lost_while_a_stream_is_opened_is_our_error(sshd: Sshd, login: Login) -> None:
    """A loss while a stream is opened raises ConnectionLostError and notifies the observer."""
    lost = asyncio.Event()

    class Observer:
        def connection_lost(self) -> None:
            lost.set()

    async with dialled(sshd.spec(), login) as connection, asyncio.TaskGroup() as tasks:
        connection.notify_lost(Observer())
        sshd.answers.clear()

        async def connect() -> None:
            with pytest.raises(ConnectionLostError):
                await connection.connect(Endpoint("127.0.0.1", 5000))

        tasks.create_task(connect())
        await until(lambda: sshd.opens_requested)
        sshd.cut()
        await asyncio.wait_for(lost.wait(), 5)
        with pytest.raises(ConnectionLostError):
            await connection.connect(Endpoint("127.0.0.1", 5000))


# --- the end ---


async def test_an_abort_drops_data_in_flight(sshd: Sshd, login: Login) -> None:
    """An abort drops what the kernel has buffered, and the agent sees a reset."""
    async with dialled(sshd.spec(), login) as connection:
        agents = sshd.connection
        agents._transport.pause_reading()
        connection._transport.write(bytes(64 << 20))
        connection._transport.bulk.idle()  # the kernel takes what it can
        connection.abort()
        agents._transport.resume_reading()
        await until(lambda: agents._transport is None)
        await connection.lost.wait()


async def test_a_lost_connection_says_why(sshd: Sshd, login: Login) -> None:
    """The reason of a loss is the disconnect message, or that the agent closed the connection."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection.disconnect(asyncssh.DISC_SERVICE_NOT_AVAILABLE, "going down")
        await until(connection.lost.is_set)

        assert "going down" in connection.loss


async def test_an_unanswered_close_ends_after_the_timeout(sshd: Sshd, login: Login) -> None:
    """A close that the agent does not answer drops the connection after the given time."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection._transport.pause_reading()

        async with asyncio.timeout(5):
            await connection.close(0.1)
            await connection.lost.wait()
