"""The checks on the registry: whether it answers, and where it listens."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate import registry_check
from tunnelmgr.gate.registry_check import is_loopback_only, listen_addresses, registry_error

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(local: str, state: str = "0A") -> str:
    """Return a line of proc_net(5)."""
    return f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1 1\n"


def proc(tmp_path: Path, tcp: str = "", tcp6: str = "") -> Path:
    """Write both tables."""
    (tmp_path / "tcp").write_text(HEAD + tcp)
    (tmp_path / "tcp6").write_text(HEAD + tcp6)
    return tmp_path


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Endpoint]:
    """Run a server that sends these bytes to any request."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with serving(talk) as endpoint:
        yield endpoint


@asynccontextmanager
async def serving(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Endpoint]:
    """Run a server on a free port."""
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])


# --- whether it answers ---


async def test_a_registry_that_answers_200_has_no_error() -> None:
    """A registry that answers 200 has no error."""
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as endpoint:
        assert await registry_error(endpoint) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "answers 401 to GET /v2/, not 200; remove `auth`"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "answers 503"),
        (b"HTTP/1.1 \xff\r\n\r\n", "answers"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "does not speak HTTP"),
        (b"HTTP/1.1\r\n\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (b"x" * 100_000, "does not speak HTTP"),
    ],
    ids=lambda value: value[:16] if isinstance(value, str) else repr(value[:16]),
)
async def test_any_other_answer_is_an_error_that_shows_it(answer: bytes, words: str) -> None:
    """Any other answer is an error that shows it, and an endless line neither blocks nor raises."""
    async with answering(answer) as endpoint:
        wrong = await registry_error(endpoint)

    assert wrong is not None
    assert words in wrong
    assert str(endpoint) in wrong


async def test_a_closed_port_is_an_error_with_the_systems_message() -> None:
    """A closed port is an error with the system's message and the address once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = Endpoint("127.0.0.1", taken.getsockname()[1])

    assert await registry_error(endpoint) == (
        f"{endpoint}: Connection refused; start the registry, or correct the forward's target"
    )


async def test_a_registry_that_does_not_answer_is_an_error_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that does not answer is an error after the timeout."""
    monkeypatch.setattr(registry_check, "CHECK_TIMEOUT", 0.1)
    ended = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    async with serving(hang) as endpoint:
        wrong = await registry_error(endpoint)
        assert wrong is not None
        assert wrong.startswith(f"{endpoint} does not answer within 0.1 s; start the registry")
        await asyncio.wait_for(ended.wait(), 5)


# --- where it listens ---


@pytest.mark.parametrize(
    ("tables", "addresses"),
    [
        ({"tcp": row("0100007F:1388")}, ("127.0.0.1",)),
        ({"tcp": row("00000000:1388")}, ("0.0.0.0",)),  # noqa: S104
        ({"tcp": row("0700020A:1388")}, ("10.2.0.7",)),
        ({"tcp6": row("00000000000000000000000001000000:1388")}, ("::1",)),
        ({"tcp6": row("00000000000000000000000000000000:1388")}, ("::",)),
        ({"tcp6": row("0000000000000000FFFF00000100007F:1388")}, ("127.0.0.1",)),
        ({"tcp6": row("B80D0120000000000000000001000000:1388")}, ("2001:db8::1",)),
        ({"tcp": row("0100007F:1388") + row("0200007F:1388")}, ("127.0.0.1", "127.0.0.2")),
        ({"tcp": row("0100007F:1389")}, ()),
        ({"tcp": row("0100007F:1388", state="01")}, ()),
    ],
)
def test_listeners_are_read_from_the_kernels_tables(
    tmp_path: Path, tables: dict[str, str], addresses: tuple[str, ...]
) -> None:
    """The listeners on a port are read from /proc/net, without other ports and established connections."""
    assert listen_addresses(5000, proc(tmp_path, **tables)) == addresses


def test_there_are_no_listeners_without_the_kernels_tables(tmp_path: Path) -> None:
    """Without /proc, as in some containers, no listener is found."""
    assert listen_addresses(5000, tmp_path / "nowhere") == ()


@pytest.mark.parametrize(("host", "verdict"), [("127.0.0.1", True), ("0.0.0.0", False)])  # noqa: S104
def test_a_real_listener_is_found_at_its_address(host: str, verdict: bool) -> None:
    """A real listener is found at its address, also beside an established connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(other.getsockname()),
        socket.create_server((host, 0)) as server,
    ):
        port = server.getsockname()[1]

        assert listen_addresses(port) == (host,)
        assert is_loopback_only(Endpoint("127.0.0.1", port)) is verdict


def test_a_port_without_a_visible_listener_is_unknown() -> None:
    """A port without a visible listener is unknown, since it may be in another network namespace."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert is_loopback_only(Endpoint("127.0.0.1", port)) is None


def test_a_target_that_is_not_on_loopback_is_not_loopback_only() -> None:
    """A target that is not a loopback address is not loopback-only, regardless of what listens on this machine."""
    assert is_loopback_only(Endpoint("192.0.2.7", 5000)) is False
