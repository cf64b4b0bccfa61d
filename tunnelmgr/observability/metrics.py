"""All Prometheus metrics: measurements as they were taken, and samples of the world at each scrape."""

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from tunnelmgr.core.health import Telemetry
from tunnelmgr.observability.measurements import Measurements
from tunnelmgr.observability.samples import WorldCollector

# Prometheus takes the time of a counter's start as just another gauge, one for each series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # its only form


CONTENT_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format, https://prometheus.io/docs/instrumenting/exposition_formats/."""


class Metrics:
    """Returns all samples; `web/health.py` serves them at `/metrics`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.measurements = Measurements(self._registry)

    def watch(self, telemetry: Telemetry) -> None:
        """Also serve what the daemon reports of its world and its health."""
        self._registry.register(WorldCollector(telemetry))

    def exposition(self) -> bytes:
        """Return all samples now, in the format of `CONTENT_TYPE`."""
        return generate_latest(self._registry)
