"""Text from an agent is printable and short in errors, in logs and on the screen."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import asyncssh
import pytest
import structlog

from tests.ssh.ssh_server import Sshd, free_port, generate, running_sshd, running_tcp_server
from tests.until import until
from tunnelmgr.cli.log_format import LogFormat, LogLevel, configure
from tunnelmgr.core.sanitize import LIMIT, error_text, sanitize
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import TunnelError, UnreachableError
from tunnelmgr.ssh.client import dial
from tunnelmgr.ssh.host_key_scan import scan_host_key
from tunnelmgr.ssh.login import Login

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x00\x9b31m\u202egnp.exe " + "x" * 20_000
"""It sets the window's title, clears the screen, ends a string, sets colours, reverses the text, and is long."""


def is_safe(text: str) -> bool:
    """Return whether a text is printable and short."""
    return text.isprintable() and len(text) <= LIMIT + 100


@pytest.fixture(scope="module")
def key() -> asyncssh.SSHKey:
    """Return the controller's key."""
    return generate()


@pytest.fixture
def login(key: asyncssh.SSHKey) -> Login:
    """Return the controller's login."""
    return Login("tunnel", key, 5.0)


@pytest.fixture
def _logs() -> Iterator[None]:
    """Reset the configuration of the logs after a test."""
    yield
    structlog.reset_defaults()


# --- sanitizing a text ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Connection reset by peer", "Connection reset by peer"),
        ("Größe: 4 µs", "Größe: 4 µs"),
        ("two\r\nlines\tand  more", "two lines and more"),
        ("\x1b[2Jgone\x07", "?[2Jgone?"),
        ("\x9b31mred \x00", "?31mred ?"),
        ("\u202egnp.exe\u200b\u2066", "?gnp.exe??"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_a_text_becomes_one_printable_line(text: str, shown: str) -> None:
    """A text becomes one line of printable characters, and a printable line is unchanged."""
    assert sanitize(text) == shown


def test_a_long_text_is_truncated_with_a_mark() -> None:
    """A text longer than the limit is truncated to it, with a mark at its end."""
    assert sanitize("x" * 10_000_000) == "x" * (LIMIT - 1) + "…"
    assert sanitize("x" * LIMIT) == "x" * LIMIT
    assert sanitize("abcdef", limit=4) == "abc…"


def test_an_error_without_a_message_is_shown_by_its_type() -> None:
    """An error without a message is shown by the name of its type."""
    assert error_text(AttributeError()) == "AttributeError"
    assert error_text(ConnectionError("\x1bgone")) == "?gone"


# --- each way that text arrives ---


async def test_a_disconnect_message_is_sanitized(key: asyncssh.SSHKey, login: Login) -> None:
    """A disconnect message, which becomes the reason of the tunnel's end, is sanitized."""
    async with running_sshd(Sshd(generate(), key)) as sshd:
        connection = await dial(sshd.spec(), login)
        sshd.connection.disconnect(asyncssh.DISC_SERVICE_NOT_AVAILABLE, EVIL)
        await until(connection.lost.is_set)

    assert "gnp.exe" in connection.loss
    assert is_safe(connection.loss)


async def test_the_reason_of_a_refused_channel_is_sanitized(key: asyncssh.SSHKey, login: Login) -> None:
    """The reason of a refused channel, which becomes part of a probe's failure, is sanitized."""

    class Evil(asyncssh.SSHServer):
        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, _username: str, _key: asyncssh.SSHKey) -> bool:
            return True

        def connection_requested(self, _host: str, _port: int, _from: str, _from_port: int) -> bool:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, EVIL)

    host_key = generate()
    acceptor = await asyncssh.create_server(Evil, "127.0.0.1", 0, server_host_keys=[host_key], config=None)
    connection = await dial(Sshd(host_key, key, port=acceptor.get_port()).spec(), login)
    try:
        with pytest.raises(ConnectionRefusedError) as refused:
            await connection.connect(Endpoint("127.0.0.1", free_port()))
    finally:
        connection.abort()
        acceptor.close()
        await acceptor.wait_closed()

    assert is_safe(str(refused.value))


@pytest.mark.parametrize(
    "greeting",
    [
        (EVIL[:200].replace("\n", "") + "\n").encode() * 5000,
        b"x" * 1_000_000,
        b"SSH-1.5-" + EVIL.encode()[:100] + b"\r\n",
        b"SSH-2.0-\x1b[2J\xff\r\n",
        b"SSH-2.0-x\r\n" + b"\xff\xff\xff\xff" * 10_000,
        b"SSH-2.0-x\r\n" + b"\x00\x00\x00\x0c\x0b" + bytes(11),
        b"SSH-2.0-x\r\n" + bytes(64),
    ],
    ids=["many lines", "one line", "old version", "odd version", "huge packet", "empty packet", "no packet"],
)
async def test_a_flood_before_the_handshake_is_one_short_error(login: Login, greeting: bytes) -> None:
    """Lines before the SSH version are skipped, and too many or too long ones become one short error."""

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        await asyncio.Event().wait()

    sshd = Sshd(generate(), generate())
    async with running_tcp_server(talk) as endpoint:
        with pytest.raises(UnreachableError) as failed:
            await dial(sshd.spec(port=endpoint.port), replace(login, connect_timeout=1.0))
        with pytest.raises(UnreachableError) as scanned:
            await scan_host_key(replace(sshd.agent(), port=endpoint.port), 1.0)

    assert is_safe(str(failed.value))
    assert is_safe(str(scanned.value))


async def test_the_names_of_algorithms_are_sanitized(login: Login) -> None:
    """The error about a server without a common algorithm shows its sanitized offer."""
    names = ",".join(["\x1b[2J", "x" * 5000, "none"]).encode()
    lists = b"".join(len(names).to_bytes(4, "big") + names for _ in range(10))
    payload = bytes([20]) + bytes(16) + lists + bytes(5)
    padding = 8 - (len(payload) + 5) % 8 + 4
    packet = (len(payload) + padding + 1).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-x\r\n" + packet)
        await asyncio.Event().wait()

    async with running_tcp_server(talk) as endpoint:
        with pytest.raises(UnreachableError) as failed:
            await dial(Sshd(generate(), generate()).spec(port=endpoint.port), login)

    assert "No matching key exchange" in str(failed.value)
    assert is_safe(str(failed.value))


async def test_a_flood_of_login_banners_costs_one_timeout(key: asyncssh.SSHKey, login: Login) -> None:
    """A server that sends login banners without end costs one login timeout, and no banner is kept."""

    class Chatty(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._conn = conn

        async def begin_auth(self, _username: str) -> bool:
            for _ in range(5000):
                self._conn.send_auth_banner(EVIL)
                await asyncio.sleep(0)
            await asyncio.Event().wait()
            return True

    host_key = generate()
    acceptor = await asyncssh.create_server(Chatty, "127.0.0.1", 0, server_host_keys=[host_key], config=None)
    try:
        with pytest.raises(TunnelError) as failed:
            async with asyncio.timeout(20):
                await dial(Sshd(host_key, key, port=acceptor.get_port()).spec(), replace(login, connect_timeout=1.0))
    finally:
        acceptor.close()
        await acceptor.wait_closed()

    assert is_safe(str(failed.value))


@pytest.mark.parametrize("form", list(LogFormat))
@pytest.mark.usefixtures("_logs")
def test_no_log_line_has_a_control_character(form: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    """No log line has a control character, also not in a field that was not sanitized."""
    configure(form, LogLevel.INFO)
    structlog.get_logger("agent").warning("lost", reason="\x1b[2J\x07", nested=["\x1b[2J"], **{"\x1b[k": 1})

    line = capsys.readouterr().err.rstrip("\n")
    assert "lost" in line
    assert line.isprintable()
    if form is LogFormat.JSON:
        assert json.loads(line)["reason"] == "\x1b[2J\x07"


@pytest.mark.usefixtures("_logs")
def test_a_trace_in_the_log_is_sanitized_and_shows_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    """A trace in the log is printable and shows no values of variables."""
    secret = "hunter" + str(2)
    configure(LogFormat.TEXT, LogLevel.INFO)
    try:
        raise ConnectionError("\x1b[2J")  # noqa: TRY301 - a foreign error, as the supervisor would meet it
    except ConnectionError:
        structlog.get_logger("agent").exception("broken", of=len(secret))

    lines = capsys.readouterr().err
    assert "ConnectionError: ?[2J" in lines
    assert secret not in lines
    assert "".join(lines.splitlines()).isprintable()
