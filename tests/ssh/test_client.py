"""The door to asyncssh, against servers that lie, hang and bait."""

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
    """Return the sockets that this process holds."""
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
    """The agent sees the configured user and our one key."""
    async with dialled(sshd.spec(), login) as connection:
        assert connection.address == "127.0.0.1"
        assert not connection.lost.is_set()

    assert set(sshd.users) == {"tunnel"}
    assert set(sshd.offered) == {public(key)}


async def test_nothing_from_the_home_directory_or_an_agent_is_used(
    sshd: Sshd, login: Login, key: asyncssh.SSHKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile ~/.ssh and SSH_AUTH_SOCK change nothing: the agent is offered our key alone."""
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


async def test_without_any_expected_key_nobody_is_accepted(sshd: Sshd, login: Login, tmp_path: Path) -> None:
    """No evidence is not a licence: ~/.ssh/known_hosts is not asked."""
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "known_hosts").write_text(
        f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n* {sshd.host_key}\nstatic:builder-1 {sshd.host_key}\n"
    )

    with pytest.raises(HostKeyMismatchError):
        await dial(sshd.spec(keys=()), login)

    assert sshd.logins_begun == 0


async def test_another_key_is_a_stranger_and_is_offered_nothing(sshd: Sshd, login: Login) -> None:
    """The mismatch is found before a user or a key is named."""
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
async def test_a_stranger_with_another_type_of_key_is_a_stranger_too(
    key: asyncssh.SSHKey, login: Login, kind: str
) -> None:
    """It is no failed negotiation, which would be tried again for ever."""
    async with running_sshd(Sshd(generate(kind), key)) as sshd:
        with pytest.raises(HostKeyMismatchError):
            await dial(sshd.spec(keys=[public(generate())]), login)

    assert sshd.logins_begun == 0


@pytest.mark.parametrize("kind", ["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"])
async def test_every_type_of_host_key_can_be_the_expected_one(key: asyncssh.SSHKey, login: Login, kind: str) -> None:
    """An agent with no Ed25519 key is dialled all the same."""
    async with running_sshd(Sshd(generate(kind), key)) as sshd, dialled(sshd.spec(), login):
        assert len(sshd.connections) == 1


async def test_a_server_with_several_keys_shows_the_expected_one(key: asyncssh.SSHKey, login: Login) -> None:
    """The type of the expected key is asked for first, so evidence of one of many is enough."""
    rsa = generate("ssh-rsa")
    async with (
        running_sshd(Sshd(generate(), key, more_keys=(rsa, generate("ecdsa-sha2-nistp256")))) as sshd,
        dialled(sshd.spec(keys=[public(rsa)]), login) as connection,
    ):
        assert public(connection._conn.get_server_host_key()) == public(rsa)


def test_expected_types_come_first_and_none_is_left_out() -> None:
    """The order follows the evidence; SHA-1 signatures are not taken."""
    order = host_key_algorithms(("ssh-rsa AAAA",))

    assert order[:2] == ["rsa-sha2-512", "rsa-sha2-256"]
    assert set(order) == set(host_key_algorithms(()))
    assert "ssh-rsa" not in order


async def test_a_server_that_lets_anybody_in_is_refused(sshd: Sshd, login: Login) -> None:
    """Authentication `none` proves nothing of us to it, and is a sign of an impostor."""
    sshd.anybody = True

    with pytest.raises(AuthenticationError):
        await dial(sshd.spec(), login)


async def test_a_key_that_is_not_accepted_is_an_authentication_error(sshd: Sshd, login: Login) -> None:
    """Its message names the user, and passwords are not tried."""
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
    """A server that offers nothing else gets no connection and no login."""
    async with running_sshd(Sshd(host_key, key), **{option: offer}) as sshd:
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(), login)
        with pytest.raises(UnreachableError):
            await scan_host_key(sshd.agent(), 5)

    assert sshd.logins_begun == 0


async def test_a_cipher_that_is_configured_is_offered(
    key: asyncssh.SSHKey, host_key: asyncssh.SSHKey, login: Login
) -> None:
    """For agents that have only ChaCha20; a look at the key needs it too."""
    chacha = ("chacha20-poly1305@openssh.com",)
    async with running_sshd(Sshd(host_key, key), encryption_algs=list(chacha)) as sshd:
        assert await scan_host_key(sshd.agent(), 5, chacha) == sshd.host_key
        async with dialled(sshd.spec(), replace(login, ciphers=chacha)) as connection:
            assert connection._conn.get_extra_info("send_cipher") == chacha[0]


async def test_what_is_negotiated_is_uncompressed_and_of_our_list(sshd: Sshd, login: Login) -> None:
    """A server with every algorithm still gets ours."""
    async with dialled(sshd.spec(), login) as connection:
        told = connection._conn.get_extra_info

        assert told("send_cipher") in CIPHERS
        assert told("recv_cipher") in CIPHERS
        assert told("send_compression") == told("recv_compression") == "none"


# --- the way in fails ---


async def test_a_server_that_accepts_and_says_nothing_costs_one_timeout_and_nothing_more(
    sshd: Sshd, login: Login
) -> None:
    """Neither a socket nor a task is left behind."""
    silence = asyncio.Event()

    async def say_nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await silence.wait()

    clock = asyncio.get_running_loop().time
    async with running_tcp_server(say_nothing) as endpoint:
        before, begun, tasks = sockets(), clock(), len(asyncio.all_tasks())

        with pytest.raises(UnreachableError, match=r"within 0\.3 s"):
            await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=0.3))

        assert clock() - begun < 2
        # What stays is the server's own half, until it notices.
        silence.set()
        await until(lambda: sockets() <= before)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_a_server_that_stops_within_the_handshake_is_unreachable_in_time(sshd: Sshd, login: Login) -> None:
    """The deadline holds for the whole of the handshake, not for its first answer."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-slow\r\n")
        await asyncio.Event().wait()

    async with running_tcp_server(greet) as endpoint:
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=0.3))
        with pytest.raises(UnreachableError):
            await scan_host_key(replace(sshd.agent(), port=endpoint.port), 0.3)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100_000])
async def test_what_is_no_ssh_server_is_unreachable(sshd: Sshd, login: Login, said: bytes) -> None:
    """Whatever it says, it is our error and no other."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    async with running_tcp_server(talk) as endpoint:
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=1))


async def test_addresses_are_tried_in_order(sshd: Sshd, login: Login) -> None:
    """The first that answers is the one that is told."""
    spec = sshd.spec()._replace(addresses=("127.0.0.9", "127.0.0.1", "127.0.0.8"))

    async with dialled(spec, login) as connection:
        assert connection.address == "127.0.0.1"


async def test_an_address_that_swallows_packets_leaves_time_for_the_next(sshd: Sshd, login: Login) -> None:
    """One that never answers gets its share of the time and not all of it."""
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
    """One that accepts and says nothing gets its share of the time and not all of it."""
    with socket.create_server(("127.0.0.9", sshd.port)):
        spec = sshd.spec()._replace(addresses=("127.0.0.9", "127.0.0.1"))

        async with dialled(spec, replace(login, connect_timeout=2.0)) as connection:
            assert connection.address == "127.0.0.1"


async def test_no_address_that_answers_is_unreachable_with_the_last_reason(sshd: Sshd, login: Login) -> None:
    """A person sees which address, and why."""
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.9 port \d+"):
        await dial(sshd.spec(port=free_port())._replace(addresses=("127.0.0.8", "127.0.0.9")), login)


# --- the scan for a first key ---


async def test_a_scan_returns_the_key_and_offers_nothing(sshd: Sshd, tmp_path: Path) -> None:
    """It ends before a user is named, and no key file in the home is touched."""
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "id_ed25519").write_text("no key at all")

    assert await scan_host_key(sshd.agent(), 5) == sshd.host_key

    assert sshd.logins_begun == 0


async def test_a_scan_of_nobody_is_unreachable(sshd: Sshd) -> None:
    """No address, no listener, no answer: one error."""
    with pytest.raises(UnreachableError):
        await scan_host_key(replace(sshd.agent(), addresses=()), 1)
    with pytest.raises(UnreachableError):
        await scan_host_key(replace(sshd.agent(), port=free_port()), 1)


# --- listeners and exchanges ---


async def test_a_listener_is_asked_for_by_its_literal_address(sshd: Sshd, login: Login) -> None:
    """`permitlisten` compares strings, so the agent hears exactly what was configured."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        listener = await connection.listen(endpoint, AdmitAll())

        assert listener is not None
        assert sshd.asked == [endpoint]


async def test_a_refused_listener_is_none_and_the_connection_stands(sshd: Sshd, login: Login) -> None:
    """A refusal is an answer; the next address may be asked for."""
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
    """It is not mistaken for a refusal."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.cut()
        await until(connection.lost.is_set)

        with pytest.raises(ConnectionLostError):
            await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())


async def test_the_message_that_a_listener_is_exposed_is_heard(sshd: Sshd, login: Login) -> None:
    """It comes before the answer to the request, so the answer finds it known."""
    sshd.exposes = True
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())

        assert connection.exposed


async def test_other_debug_messages_mean_nothing(sshd: Sshd, login: Login) -> None:
    """Control characters and nonsense neither hurt nor frighten."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection.send_debug("\x1b[2J\0 GatewayPorts " + "x" * 10_000)
        assert await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())

        assert not connection.exposed


async def test_a_declined_channel_leaves_nothing_behind(sshd: Sshd, login: Login) -> None:
    """The agent gets `resource shortage`, the connection stands, and asyncssh holds no channel."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(endpoint, Decline())
        for _ in range(20):
            with pytest.raises(asyncssh.ChannelOpenError, match="full") as refused:
                await sshd.connection.open_connection(endpoint.host, endpoint.port)
            assert refused.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE

        await until(lambda: not connection._conn._channels)
        assert not connection.lost.is_set()


async def test_channels_for_ports_that_were_not_asked_for_are_refused(sshd: Sshd, login: Login) -> None:
    """The agent cannot make us connect anywhere, nor open sessions or sockets here."""
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


async def test_a_stream_from_the_agent_goes_both_ways(sshd: Sshd, login: Login) -> None:
    """It ends as any other channel, and leaves nothing behind."""

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
    """It is told apart from a lost connection."""
    async with dialled(sshd.spec(), login) as connection:
        with pytest.raises(ConnectionRefusedError):
            await connection.connect(Endpoint("127.0.0.1", free_port()))


async def test_a_connection_lost_while_a_stream_is_opened_is_our_error(sshd: Sshd, login: Login) -> None:
    """None of asyncssh's own gets through, and whoever asked to be told of the loss is told."""
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


async def test_an_abort_takes_back_what_is_under_way(sshd: Sshd, login: Login) -> None:
    """A revoked agent gets nothing more, not even what the kernel has taken for it; its side sees a reset."""
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
    """The reason is what the other side said, or that it closed."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection.disconnect(asyncssh.DISC_SERVICE_NOT_AVAILABLE, "going down")
        await until(connection.lost.is_set)

        assert "going down" in connection.loss


async def test_a_goodbye_that_is_not_answered_ends_all_the_same(sshd: Sshd, login: Login) -> None:
    """Nobody is waited for longer than told."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection._transport.pause_reading()

        async with asyncio.timeout(5):
            await connection.close(0.1)
            await connection.lost.wait()
