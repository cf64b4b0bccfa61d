"""The limits of the connections to an HTTP server: peers that send nothing, half a request, or never read."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from tests.ssh.ssh_server import free_port
from tunnelmgr.control import connections
from tunnelmgr.control.connections import LimitedRunner

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"x" * 32 * 1024 * 1024
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving(body: bytes = b"hello") -> AsyncIterator[int]:
    """Serve a body on loopback."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body)

    runner, port = LimitedRunner([web.get("/", answer)], []), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    """Connect."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait until the server has closed the connection."""
    async with asyncio.timeout(10):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
    return True


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Set one of the limits."""
    return lambda name, value: monkeypatch.setattr(connections, name, value)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost:"])
async def test_a_connection_without_a_request_is_closed(limit: Callable[[str, float], None], sent: bytes) -> None:
    """A peer that sends nothing, or half a head, does not keep its connection."""
    limit("HEAD_TIMEOUT", 0.1)
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(sent)

        assert await ended(reader)


async def test_a_connection_with_a_request_may_be_idle_for_some_time(limit: Callable[[str, float], None]) -> None:
    """After a request, only the limit for idle connections counts."""
    limit("HEAD_TIMEOUT", 0.1)
    async with serving() as port, connected(port) as (reader, writer), connected(port) as (silent, _):
        writer.write(REQUEST)
        await reader.readuntil(b"hello")
        await ended(silent)
        writer.write(REQUEST)

        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")


async def test_an_idle_connection_is_closed(limit: Callable[[str, float], None]) -> None:
    """A client that has had its answers, and asks for nothing more, loses its connection."""
    limit("KEEPALIVE_TIMEOUT", 0.1)
    async with serving() as port, connected(port) as (reader, writer):
        writer.write(REQUEST)

        assert await ended(reader)


async def test_a_client_that_does_not_read_its_answer_is_cut_off(limit: Callable[[str, float], None]) -> None:
    """After the limit, the connection and the memory of its answer are gone."""
    limit("ANSWER_TIMEOUT", 0.2)
    limit("HEAD_TIMEOUT", 1.0)
    loop = asyncio.get_running_loop()
    async with serving(LARGE) as port:
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, REQUEST)
            assert (await loop.sock_recv(client, 12)) == b"HTTP/1.1 200"

            async with connected(port) as (reader, _):
                assert await ended(reader)
            received = 0
            with suppress(ConnectionError):
                while data := await loop.sock_recv(client, 65536):
                    received += len(data)

    assert received < len(LARGE)


async def test_connections_beyond_the_limit_are_closed_at_once(limit: Callable[[str, float], None]) -> None:
    """The others are served meanwhile, and one that ends makes room."""
    limit("MAX_CONNECTIONS", 1)
    async with serving() as port:
        async with connected(port) as (reader, writer):
            writer.write(REQUEST)
            await reader.readuntil(b"hello")
            async with connected(port) as (refused, _):
                assert await ended(refused)
            writer.write(REQUEST)
            await reader.readuntil(b"hello")

        async def served_again() -> bool:
            async with connected(port) as (reader, writer):
                writer.write(REQUEST)
                return bool(await reader.read(1))

        async with asyncio.timeout(10):
            while not await served_again():
                pass
