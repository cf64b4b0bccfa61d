"""Counters and histograms of what happens between two scrapes: requests, dials, probes, ends of tunnels, loop lag.

Names and units follow https://prometheus.io/docs/practices/naming/. The values of each label are few: groups and
forwards come from the configuration, actions, phases and codes from this program, and statuses from HTTP's registry.
"""

from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram

from tunnelmgr.core.failure import INTERNAL
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.errors import TunnelError

LAG_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds. A bulk pull of one agent may delay another by 20 ms; systemd's watchdog ends a loop that hangs."""
PROBE_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds: from an agent in the same building to the longest time that a probe may take."""
DIAL_BUCKETS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Seconds: from one handshake on an idle machine to a dial that tries several addresses."""
TIME_TO_UP_BUCKETS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Seconds: from a pinned key to a console that the cloud shows late. The script on agents gives up after 120."""
LATENCY_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds: from a reply of the gate itself to a registry whose storage is slow, or a wait within a group's limit."""
REQUEST_BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds: from a manifest to a layer of gigabytes."""
CLOSED: Final = "closed"
"""The code of a tunnel that ended because the controller closed it."""
OTHER: Final = "other"
"""The value of a label that would have an unexpected one."""


class RequestLabels(NamedTuple):
    """What is counted of a request: `status` is that of HTTP, 0 if no response was started."""

    group: str
    forward: str
    action: str
    verdict: str
    status: int


class Measurements:
    """Takes measurements as they happen, each at a constant cost; labels are groups and codes, never agents."""

    def __init__(self, registry: CollectorRegistry) -> None:
        histogram = partial(Histogram, registry=registry)
        self._requests = Counter(
            "tunnelmgr_requests",
            "Requests through the gate",
            ["group", "forward", "action", "verdict", "status"],
            registry=registry,
        )
        self._ended = Counter(
            "tunnelmgr_tunnels_ended",
            "Ended tunnels, by the phase in which they ended and the error's code",
            ["group", "phase", "code"],
            registry=registry,
        )
        says = "Time from the first byte of a request to the start of its response"
        self._request_latency = histogram(
            "tunnelmgr_request_latency_seconds", says, ["action"], buckets=LATENCY_BUCKETS
        )
        says = "Time from the first byte of a request to the end of its response, with the bodies"
        self._request_seconds = histogram(
            "tunnelmgr_request_duration_seconds", says, ["action"], buckets=REQUEST_BUCKETS
        )
        says = "Time from the admission of a dial to the login: TCP, handshake, host key, authentication"
        self._dial_seconds = histogram("tunnelmgr_dial_duration_seconds", says, ["group"], buckets=DIAL_BUCKETS)
        says = "Time of a probe through the agent's own listener to the gate"
        self._probe_seconds = histogram("tunnelmgr_probe_duration_seconds", says, ["group"], buckets=PROBE_BUCKETS)
        says = "Time from an agent's first appearance in its source to its first tunnel"
        self._time_to_up = histogram("tunnelmgr_time_to_up_seconds", says, ["group"], buckets=TIME_TO_UP_BUCKETS)
        self._lag = histogram("tunnelmgr_loop_lag_seconds", "How late the event loop was", buckets=LAG_BUCKETS)
        # A fleet's probes are most of what happens. To find their series by labels costs more than to add to them.
        self._request_series: dict[RequestLabels, tuple[Counter, Histogram, Histogram]] = {}
        self._probe_series: dict[str, Histogram] = {}

    def record_request(self, request: RequestLabels, latency: float, took: float, trace_id: str = "") -> None:
        """Record one request, the seconds to the start and to the end of its response, and its trace if it has one."""
        counter, latencies, seconds = self._request_series.get(request) or self._series_of(request)
        counter.inc()
        example = {"trace_id": trace_id} if trace_id else None
        latencies.observe(latency, example)
        seconds.observe(took, example)

    def _series_of(self, request: RequestLabels) -> tuple[Counter, Histogram, Histogram]:
        """Return a request's series, and keep them unless a registry has invented the status."""
        label = status_label(request.status)
        counter = self._requests.labels(request.group, request.forward, request.action, request.verdict, label)
        action = request.action
        series = counter, self._request_latency.labels(action), self._request_seconds.labels(action)
        if label == str(request.status):
            self._request_series[request] = series
        return series

    def record_dial(self, group: str, took: float) -> None:
        """Record the seconds of a dial that has ended in a login."""
        self._dial_seconds.labels(group).observe(took)

    def record_probe(self, group: str, took: float) -> None:
        """Record the seconds of a probe."""
        seconds = self._probe_series.get(group)
        if seconds is None:
            seconds = self._probe_series[group] = self._probe_seconds.labels(group)
        seconds.observe(took)

    def record_first_up(self, group: str, after: float) -> None:
        """Record the seconds after which a new agent has its first tunnel."""
        self._time_to_up.labels(group).observe(after)

    def record_end(self, group: str, phase: Phase, code: str | None) -> None:
        """Record the end of a tunnel; `code` is None if the controller closed it."""
        known = CLOSED if code is None else code if code in TUNNEL_CODES else OTHER
        self._ended.labels(group, phase.value, known).inc()

    def record_lag(self, seconds: float) -> None:
        """Record by how many seconds a timer of the event loop was late."""
        self._lag.observe(seconds)


def _codes(error: type[TunnelError]) -> Iterator[str]:
    yield error.code
    for special in error.__subclasses__():
        yield from _codes(special)


TUNNEL_CODES: Final = frozenset(_codes(TunnelError)) | {INTERNAL}
"""The codes with which a tunnel may end."""


def status_label(status: int) -> str:
    """Return a status as it is if HTTP knows it, otherwise its class: a registry may invent any number."""
    if status == 0 or status in _STATUSES:
        return str(status)
    return f"{status // 100}xx" if 100 <= status < 600 else OTHER  # noqa: PLR2004 - RFC 9110, section 15


_STATUSES: Final = frozenset(map(int, HTTPStatus))
