"""Serves Prometheus metrics: measurements as they were taken, and samples of the world at each scrape."""

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, generate_latest

from tunnelmgr.core.health import Telemetry
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.observability.measurements import Measurements
from tunnelmgr.observability.samples import WorldCollector

# Prometheus takes the time of a counter's start as just another gauge, one for each series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # its only form


class MetricsServer:
    """Serves `/metrics`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.measurements = Measurements(self._registry)
        ProcessCollector(registry=self._registry)
        self._runner: web.AppRunner | None = None

    def watch(self, telemetry: Telemetry) -> None:
        """Also serve what the daemon reports of its world and its health."""
        self._registry.register(WorldCollector(telemetry))

    async def start(self, at: Endpoint) -> None:
        """Listen; raises OSError if the address is taken."""
        app = web.Application()
        app.add_routes([web.get("/metrics", self._scrape)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, at.host, at.port).start()

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _scrape(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})
