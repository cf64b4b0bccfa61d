"""Server-sent events: a client that does not read cannot make the daemon keep anything for it."""

import asyncio
import contextlib

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from tests.ssh.ssh_server import free_port
from tests.until import until
from tunnelmgr.control import sse
from tunnelmgr.control.sse import EventStream, EventStreams


async def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the buffers of the socket are full, a client has `MESSAGE_TIMEOUT` to read; then its connection is cut."""
    monkeypatch.setattr(sse, "MESSAGE_TIMEOUT", 0.2)
    streams, sent = EventStreams(1), [0]

    async def serve(request: web.Request) -> web.StreamResponse:
        async with streams.open(request) as stream:
            await stream.start()
            while True:
                await stream.send("x", 50_000 * "x")
                sent[0] += 1
        return stream.response

    app, port = web.Application(), free_port()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: len(streams) == 1)
    await until(lambda: len(streams) == 0)

    assert 0 < sent[0] < 1000
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await runner.cleanup()


async def test_a_quiet_stream_has_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream on which nothing happens sends comments, so that a connection that has ended is noticed."""
    written: list[str] = []

    async def write(_stream: EventStream, text: str) -> None:
        written.append(text)

    monkeypatch.setattr(EventStream, "_write", write)
    monkeypatch.setattr(sse, "HEARTBEAT", 0.01)
    stream = EventStream(make_mocked_request("GET", "/"))

    assert not await stream.wait(0.001)
    assert written == []
    assert not await stream.wait(0.01)
    assert written == [": heartbeat\n\n"]
    stream.wake()
    assert await stream.wait(10)
