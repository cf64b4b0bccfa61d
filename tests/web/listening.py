"""The TCP listener on a free port, for a test."""

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

from aiohttp import web

from tests.ssh.ssh_server import free_port
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.web.listener import ReadOnlyListener


@asynccontextmanager
async def listening(
    routes: Iterable[web.AbstractRouteDef], names: Collection[str] = (), port: int | None = None
) -> AsyncIterator[Endpoint]:
    """Serve routes on a port of loopback, by default a free one."""
    at, listener = Endpoint("127.0.0.1", port or free_port()), ReadOnlyListener(routes, names)
    await listener.start(at)
    try:
        yield at
    finally:
        await listener.close()
