"""The connections of an HTTP server: few, none for long without a request, and none whose client does not read.

A peer that proves nothing, or that only reads, could otherwise take the descriptors and the memory that tunnels need.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler

MAX_CONNECTIONS: Final = 256
"""Connections that one server holds; further ones are closed at once."""
HEAD_TIMEOUT: Final = 10.0
"""Seconds in which the head of a connection's first request has to be complete."""
KEEPALIVE_TIMEOUT: Final = 30.0
"""Seconds that a connection may be idle after a request."""
ANSWER_TIMEOUT: Final = 60.0
"""Seconds in which a client has to take a whole answer, other than a stream."""


class LimitedRunner(web.AppRunner):
    """Runs an application with these routes and middlewares, within the limits of this module."""

    def __init__(
        self, routes: Iterable[web.AbstractRouteDef], middlewares: Iterable[Middleware], max_body: int = 0
    ) -> None:
        self._connections = _Connections()
        app = web.Application(middlewares=[self._connections.answered_in_time, *middlewares], client_max_size=max_body)
        app.add_routes(routes)
        super().__init__(app, access_log=None, shutdown_timeout=1, keepalive_timeout=KEEPALIVE_TIMEOUT)

    async def setup(self) -> None:
        """Prepare the application."""
        await super().setup()
        self._connections.server = super().server

    async def cleanup(self) -> None:
        """Take no more connections, and end those that are open."""
        self._connections.server = None
        await super().cleanup()
        self._connections.forget()

    @property
    def server(self) -> "_Connections":  # type: ignore[override]  # a site calls it for each connection, and no more
        """What makes the handler of a connection."""
        return self._connections


class _Connections:
    """Makes the handler of each connection; those that have had no request yet wait for one with a timer."""

    def __init__(self) -> None:
        self.server: web.Server | None = None
        self._silent: dict[RequestHandler, asyncio.TimerHandle] = {}

    def __call__(self) -> asyncio.Protocol:
        """Return the handler of a new connection, or one that closes it."""
        if self.server is None or len(self.server.connections) >= MAX_CONNECTIONS:
            return _Refusal()
        handler = self.server()
        self._silent[handler] = asyncio.get_running_loop().call_later(HEAD_TIMEOUT, self._end, handler)
        return handler

    def forget(self) -> None:
        """Cancel the timers."""
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()

    def _end(self, handler: RequestHandler) -> None:
        del self._silent[handler]
        if handler.transport is not None:
            handler.transport.abort()

    @web.middleware
    async def answered_in_time(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Send the answer, and end the connection if the client does not take it in time."""
        if (timer := self._silent.pop(request.protocol, None)) is not None:
            timer.cancel()
        response = await handler(request)
        if response.prepared:  # a stream, which has a deadline for each message
            return response
        transport = request.transport
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if transport is not None:
                transport.abort()
        except ConnectionError:
            pass  # the client is gone, which aiohttp notices by itself
        return response


class _Refusal(asyncio.Protocol):
    """Closes its connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
