"""The read-only HTTP server on the TCP address of `controller.metrics`."""

from collections.abc import Collection, Iterable

from aiohttp import web
from aiohttp.typedefs import Handler

from tunnelmgr.control.callers import is_foreign_request
from tunnelmgr.control.connections import LimitedRunner
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.web.access import is_own_host
from tunnelmgr.web.health import PATHS

METHODS = ("GET", "HEAD")


class ReadOnlyListener:
    """Serves routes until closed. Only GET and HEAD are answered; the page only under a host of its own."""

    def __init__(self, routes: Iterable[web.AbstractRouteDef], names: Collection[str] = ()) -> None:
        self._routes = routes
        self._names = frozenset(names)
        self._runner: LimitedRunner | None = None

    async def start(self, at: Endpoint) -> None:
        """Listen; raises OSError if the address is taken."""
        self._runner = LimitedRunner(self._routes, [_read_only, self._own_host])
        await self._runner.setup()
        await web.TCPSite(self._runner, at.host, at.port).start()

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _own_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PATHS:
            return await handler(request)
        if is_foreign_request(request.headers):
            raise web.HTTPForbidden(text="the page of another site may only link to the status page\n")
        if not is_own_host(request.headers.get("Host"), self._names):
            raise web.HTTPForbidden(
                text="the status page is served under addresses and localhost only; "
                "to use a name, add it to controller.metrics_names\n"
            )
        return await handler(request)


@web.middleware
async def _read_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method not in METHODS:
        raise web.HTTPMethodNotAllowed(
            request.method, METHODS, text="this address is read-only: use the unix socket or the commands\n"
        )
    return await handler(request)
