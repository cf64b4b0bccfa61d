"""Dialling agents, against servers that lie, hang or send invalid input."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.dialled_connection import dialled, sockets
from tests.ssh.ssh_server import Sshd, free_port, generate, public, running_sshd, running_tcp_server
from tests.until import until
from tunnelmgr.config import CIPHERS
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.errors import AuthenticationError, HostKeyMismatchError, UnreachableError
from tunnelmgr.ssh.client import dial, host_key_algorithms
from tunnelmgr.ssh.host_key_scan import scan_host_key
from tunnelmgr.ssh.login import Login

# --- success ---


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

    assert sshd.logins_started == 0


async def test_a_mismatch_is_found_before_the_login(sshd: Sshd, login: Login) -> None:
    """On a mismatch, neither a user nor a key is sent."""
    with pytest.raises(HostKeyMismatchError):
        await dial(sshd.spec(keys=[public(generate())]), login)

    assert sshd.logins_started == 0
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

    assert sshd.logins_started == 0


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

    assert sshd.logins_started == 0


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


# --- failure ---


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
    """Any answer of another service raises UnreachableError."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    async with running_tcp_server(talk) as endpoint:
        with pytest.raises(UnreachableError):
            await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=0.3))


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

            async with dialled(spec, replace(login, connect_timeout=1.0)) as connection:
                assert connection.address == "127.0.0.1"


async def test_an_address_whose_server_stays_silent_leaves_time_for_the_next(sshd: Sshd, login: Login) -> None:
    """An address whose server sends nothing uses only its part of the timeout."""
    with socket.create_server(("127.0.0.9", sshd.port)):
        spec = sshd.spec()._replace(addresses=("127.0.0.9", "127.0.0.1"))

        async with dialled(spec, replace(login, connect_timeout=1.0)) as connection:
            assert connection.address == "127.0.0.1"


async def test_no_address_that_answers_is_unreachable_with_the_last_reason(sshd: Sshd, login: Login) -> None:
    """If no address answers, the error names the last one and its reason."""
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.9 port \d+"):
        await dial(sshd.spec(port=free_port())._replace(addresses=("127.0.0.8", "127.0.0.9")), login)


# --- scans ---


async def test_a_scan_returns_the_key_and_offers_nothing(sshd: Sshd, tmp_path: Path) -> None:
    """A scan ends before the login, and reads no key file in the home directory."""
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "id_ed25519").write_text("no key at all")

    assert await scan_host_key(sshd.agent(), 5) == sshd.host_key

    assert sshd.logins_started == 0


async def test_a_scan_without_an_answer_is_unreachable(sshd: Sshd) -> None:
    """A scan without an address or a listener raises UnreachableError."""
    with pytest.raises(UnreachableError):
        await scan_host_key(replace(sshd.agent(), addresses=()), 1)
    with pytest.raises(UnreachableError):
        await scan_host_key(replace(sshd.agent(), port=free_port()), 1)
