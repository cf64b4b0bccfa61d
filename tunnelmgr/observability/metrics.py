"""All Prometheus metrics: measurements as they were taken, and samples of the world at each scrape."""

from prometheus_client import CollectorRegistry, disable_created_metrics, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from tunnelmgr.core.health import Telemetry
from tunnelmgr.observability.measurements import Measurements
from tunnelmgr.observability.samples import WorldCollector
from tunnelmgr.observability.traffic_totals import TrafficTotals

# Prometheus takes the time of a counter's start as just another gauge, one for each series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # its only form


class Metrics:
    """Returns all samples; `web/health.py` serves them at `/metrics`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.measurements = Measurements(self._registry)
        self.traffic = TrafficTotals()

    def watch(self, telemetry: Telemetry) -> None:
        """Also serve what the daemon reports of its world and its health."""
        self._registry.register(WorldCollector(telemetry, self.traffic))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all samples now, and their content type, in a format that an Accept header names.

        That is OpenMetrics, which Prometheus requests and which has exemplars (the traces of some measured requests),
        or Prometheus' own text format. The library's own choice fails on versions that it cannot compare.
        """
        if "application/openmetrics-text" in accept:
            body = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]  # its only form
            return body, openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self._registry), exposition.CONTENT_TYPE_PLAIN_0_0_4
