"""The registry's side of a channel: what is not read is held back, and comes whole in the end."""

import asyncio

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.upstream import HELD_UNREAD, Upstream

SENT = 4 * 1024 * 1024


async def test_a_registry_that_sends_faster_than_we_read_is_held_back_and_loses_nothing() -> None:
    """Only a bounded amount waits here; reading lets the rest come."""

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(SENT))
        await writer.drain()
        writer.close()

    async with asyncio.timeout(30):
        server = await asyncio.start_server(flood, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            upstream = await Upstream.open(Endpoint(host, port))
            held = await _held_back(upstream)
            got = 0
            while data := await upstream.read():
                got += len(data)
            upstream.abort()

    assert HELD_UNREAD < held <= 3 * HELD_UNREAD
    assert got == SENT


async def _held_back(upstream: Upstream) -> int:
    """Wait until the socket is no longer read, and return how many bytes wait."""
    arrived = asyncio.Event()
    receive = upstream.data_received

    def noted(data: bytes) -> None:
        receive(data)
        if not upstream._reading:
            arrived.set()

    upstream.data_received = noted  # type: ignore[method-assign]
    if upstream._reading:
        await arrived.wait()
    return upstream._unread
