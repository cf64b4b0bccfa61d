"""`/healthz`, `/readyz` and `/metrics`: for Kubernetes, Docker, load balancers and Prometheus.

They answer under any Host header, because health checks and scrapes use addresses and names of their own.
"""

import json
from collections.abc import Iterable
from http import HTTPStatus

from aiohttp import web

from tunnelmgr.control.loop_share import LoopShare
from tunnelmgr.core.health import Telemetry
from tunnelmgr.core.readiness import readiness
from tunnelmgr.observability.metrics import Metrics

PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
_UNCACHED = {"Cache-Control": "no-store"}


class HealthRoutes:
    """Answers whether the daemon lives, whether it is ready, and with its metrics."""

    def __init__(self, telemetry: Telemetry, metrics: Metrics) -> None:
        self._telemetry = telemetry
        self._metrics = metrics
        self._share = LoopShare()  # its own, so that readers of the pages and of the API do not delay a scrape

    def routes(self) -> Iterable[web.RouteDef]:
        """Return the routes; each answers GET and HEAD."""
        return (
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._scrape),
        )

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Answer at all: that shows that the event loop runs."""
        return web.Response(text="ok\n", headers=_UNCACHED)

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Answer with one line of JSON for each check, and with 503 if one fails."""
        checks = readiness(self._telemetry.world, self._telemetry.health())
        lines = [json.dumps({"check": check.name, "ok": check.ok, "message": check.message}) for check in checks]
        status = HTTPStatus.OK if all(check.ok for check in checks) else HTTPStatus.SERVICE_UNAVAILABLE
        return web.Response(
            text="".join(f"{line}\n" for line in lines),
            status=status,
            content_type="application/x-ndjson",
            headers=_UNCACHED,
        )

    async def _scrape(self, request: web.Request) -> web.Response:
        async with self._share.turn(request):
            body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type, "Vary": "Accept"})
