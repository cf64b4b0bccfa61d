"""The metrics as Prometheus sees them: scraped over HTTP and read with its own parser."""

import asyncio
import platform
import urllib.request
from dataclasses import replace

import asyncssh
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.control.fake_daemon import NOW, FakeDaemon
from tests.web.listening import listening
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.health import DialCounts, FastPathHealth, LimitHealth, RegistryHealth
from tunnelmgr.core.ownership import Member
from tunnelmgr.core.registry_sharing import Sharing, SharingReport
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import SourceView
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.observability.measurements import RequestLabels, status_label
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.web.health import HealthRoutes

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(metrics: Metrics) -> Samples:
    """Return every sample of one scrape."""
    async with listening(HealthRoutes(FakeDaemon(), metrics).routes()) as at:
        body = await asyncio.to_thread(_fetch, f"http://{at}/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    """Return labels as a key."""
    return frozenset(pairs.items())


def metrics_of(daemon: FakeDaemon) -> Metrics:
    """Return metrics that watch this daemon."""
    metrics = Metrics()
    metrics.watch(daemon)
    return metrics


async def test_agents_are_counted_by_group_and_phase() -> None:
    """Every phase has a sample, zero if no agent is in it, and agents that left are not counted."""
    samples = await scrape(metrics_of(FakeDaemon()))
    found = {phase: samples["tunnelmgr_agents", labels(group="ci", phase=phase.value)] for phase in Phase}

    assert found == {
        Phase.UP: 1,
        Phase.DOWN: 1,
        Phase.QUARANTINED: 1,
        Phase.AWAITING_IDENTITY: 1,
        Phase.CONNECTING: 0,
        Phase.DRAINING: 0,
    }


async def test_sources_have_their_state_and_the_time_of_their_last_success() -> None:
    """A source without a complete answer yet has no time."""
    daemon = FakeDaemon()
    sources = {
        "office": SourceView("office", ok=True, last_success=NOW),
        "cloud": SourceView("cloud", ok=False, error="throttled", missing=3),
    }
    daemon.world = replace(daemon.world, sources=sources)
    samples = await scrape(metrics_of(daemon))

    assert samples["tunnelmgr_source_ok", labels(source="office")] == 1
    assert samples["tunnelmgr_source_missing_agents", labels(source="office")] == 0
    assert samples["tunnelmgr_source_missing_agents", labels(source="cloud")] == 3
    assert samples["tunnelmgr_source_ok", labels(source="cloud")] == 0
    assert samples["tunnelmgr_source_last_success_timestamp_seconds", labels(source="office")] == NOW
    assert ("tunnelmgr_source_last_success_timestamp_seconds", labels(source="cloud")) not in samples


async def test_traffic_is_summed_by_group_and_names_no_agent() -> None:
    """Traffic has the label `group` and no label per agent."""
    traffic = {
        AgentId("static:builder-1"): Traffic(channels=2, to_agent=100, from_agent=10),
        AgentId("static:builder-2"): Traffic(channels=1, to_agent=11, from_agent=1),
        AgentId("static:forgotten"): Traffic(channels=9, to_agent=9, from_agent=9),
    }
    samples = await scrape(metrics_of(FakeDaemon(traffic=traffic)))

    assert samples["tunnelmgr_channels", labels(group="ci")] == 3
    assert samples["tunnelmgr_bytes_total", labels(group="ci", direction="to_agent")] == 111
    assert samples["tunnelmgr_bytes_total", labels(group="ci", direction="from_agent")] == 11
    assert not any("builder" in value for _, pairs in samples for _, value in pairs)


@pytest.mark.parametrize(("reachable", "error"), [(True, None), (False, "disk full")])
async def test_health_has_samples(reachable: bool, error: str | None) -> None:
    """Registry, state and uptime are samples to alert on."""
    daemon = FakeDaemon(registry=RegistryHealth(reachable=reachable, loopback_only=None), store_error=error)
    samples = await scrape(metrics_of(daemon))

    assert samples["tunnelmgr_registry_reachable", labels()] == int(reachable)
    assert samples["tunnelmgr_state_ok", labels()] == int(error is None)
    assert samples["tunnelmgr_uptime_seconds", labels()] == 12.34


@pytest.mark.parametrize("active", [True, False])
async def test_the_fast_path_has_a_sample(active: bool) -> None:
    """The fast path's state is a sample to alert on."""
    samples = await scrape(metrics_of(FakeDaemon(fast_path=FastPathHealth(active, None))))

    assert samples["tunnelmgr_fast_path_active", labels()] == int(active)


async def test_members_whose_registries_differ_are_counted() -> None:
    """The metric counts pairs of members that are alive; without a cluster there is none."""
    report = SharingReport("one", "two", "127.0.0.1:5000", "1", Sharing.OTHER_STORAGE)
    members = {name: Member(name) for name in ("one", "two")}
    alone, daemon = FakeDaemon(sharing=[report]), FakeDaemon(sharing=[report])
    daemon.world = replace(daemon.world, cluster=Cluster("one", members))
    metric = ("tunnelmgr_registries_not_shared", labels())

    assert (await scrape(metrics_of(daemon)))[metric] == 1
    daemon.world = replace(daemon.world, cluster=Cluster("one", {**members, "two": Member("two", alive=False)}))
    assert (await scrape(metrics_of(daemon)))[metric] == 0
    assert metric not in await scrape(metrics_of(alone))


def request(**changes: object) -> RequestLabels:
    """Return an allowed pull of group ci that was answered with 200."""
    plain = RequestLabels("ci", "registry", "pull", "allowed", 200)
    return plain._replace(**changes)


async def test_requests_are_counted_by_their_result() -> None:
    """Requests are counted by group, forward, action, verdict and status, across scrapes."""
    metrics = metrics_of(FakeDaemon())
    metrics.measurements.record_request(request(), 0.01, 0.1)
    metrics.measurements.record_request(request(), 0.01, 0.1)
    metrics.measurements.record_request(request(action="push", verdict="refused", status=403), 0.01, 0.1)
    metrics.measurements.record_request(request(forward="mirror"), 0.01, 0.1)
    pulls = labels(group="ci", forward="registry", action="pull", verdict="allowed", status="200")
    pushes = labels(group="ci", forward="registry", action="push", verdict="refused", status="403")
    mirrored = labels(group="ci", forward="mirror", action="pull", verdict="allowed", status="200")

    samples = await scrape(metrics)
    assert [samples["tunnelmgr_requests_total", each] for each in (pulls, pushes, mirrored)] == [2, 1, 1]
    metrics.measurements.record_request(request(), 0.01, 0.1)
    assert (await scrape(metrics))["tunnelmgr_requests_total", pulls] == 3


async def test_the_time_of_requests_is_a_histogram_by_action() -> None:
    """A pull and a push have histograms of their own, for the start and for the end of their responses."""
    metrics = metrics_of(FakeDaemon())
    metrics.measurements.record_request(request(), 0.01, 0.015)
    metrics.measurements.record_request(request(), 0.01, 45.0)
    metrics.measurements.record_request(request(action="push"), 0.01, 400.0)
    samples = await scrape(metrics)

    def count(action: str, up_to: str) -> float:
        return samples["tunnelmgr_request_duration_seconds_bucket", labels(action=action, le=up_to)]

    assert [count("pull", up_to) for up_to in ("0.01", "0.02", "30.0", "60.0")] == [0, 1, 1, 2]
    assert [count("push", up_to) for up_to in ("300.0", "+Inf")] == [0, 1]
    assert samples["tunnelmgr_request_duration_seconds_sum", labels(action="pull")] == pytest.approx(45.015)
    assert samples["tunnelmgr_request_latency_seconds_sum", labels(action="pull")] == pytest.approx(0.02)
    assert samples["tunnelmgr_request_latency_seconds_bucket", labels(action="push", le="0.005")] == 0
    assert samples["tunnelmgr_request_latency_seconds_bucket", labels(action="push", le="0.01")] == 1


@pytest.mark.parametrize(
    ("status", "label"),
    [(0, "0"), (200, "200"), (503, "503"), (599, "5xx"), (299, "2xx"), (77, "other"), (999, "other")],
)
def test_a_registry_cannot_invent_label_values(status: int, label: str) -> None:
    """A status that HTTP does not define is counted as its class, so that the number of series is bounded."""
    assert status_label(status) == label


async def test_requests_with_an_invented_status_are_counted_together() -> None:
    """Two statuses that HTTP does not define, and one that comes twice, are one series."""
    server = metrics_of(FakeDaemon())
    for status in (598, 599, 599):
        server.measurements.record_request(request(status=status), 0.01, 0.1)
    failed = labels(group="ci", forward="registry", action="pull", verdict="allowed", status="5xx")

    assert (await scrape(server))["tunnelmgr_requests_total", failed] == 3


async def test_the_process_has_the_samples_of_other_exporters() -> None:
    """CPU time grows, and the memory is at least that of a Python with its libraries."""
    server = metrics_of(FakeDaemon())
    first, second = await scrape(server), await scrape(server)

    assert 0 < first["process_cpu_seconds_total", labels()] < second["process_cpu_seconds_total", labels()]
    assert first["process_resident_memory_bytes", labels()] > 20e6


@pytest.mark.parametrize(
    ("code", "label"),
    [(None, "closed"), ("probe-timeout", "probe-timeout"), ("internal", "internal"), ("of-a-plug-in", "other")],
)
async def test_ends_of_tunnels_are_counted_by_code(code: str | None, label: str) -> None:
    """The code is that of an error of this program, `closed` if there was none, and `other` if it is unknown."""
    metrics = metrics_of(FakeDaemon())
    metrics.measurements.record_end("ci", Phase.UP, code)
    samples = await scrape(metrics)

    assert samples["tunnelmgr_tunnels_ended_total", labels(group="ci", phase="up", code=label)] == 1


async def test_dials_that_wait_are_a_gauge() -> None:
    """Dials are counted by what they wait for, and those that were admitted separately."""
    samples = await scrape(metrics_of(FakeDaemon(dials=DialCounts(7, 3, 20))))

    assert samples["tunnelmgr_dials_waiting", labels(to="connect")] == 7
    assert samples["tunnelmgr_dials_waiting", labels(to="compute")] == 3
    assert samples["tunnelmgr_dials_in_progress", labels()] == 20


async def test_the_build_is_told_by_labels() -> None:
    """The sample of the build is 1, and its labels are the versions of tunnelmgr, Python and asyncssh."""
    versions = labels(version="1.2.3", python=platform.python_version(), asyncssh=asyncssh.__version__)

    assert (await scrape(metrics_of(FakeDaemon())))["tunnelmgr_build_info", versions] == 1


async def test_loop_lag_is_a_histogram() -> None:
    """The loop's lag is a histogram with a bucket at 20 ms."""
    metrics = metrics_of(FakeDaemon())
    for seconds in (0.0, 0.015, 0.3):
        metrics.measurements.record_lag(seconds)
    samples = await scrape(metrics)

    assert samples["tunnelmgr_loop_lag_seconds_count", labels()] == 3
    assert samples["tunnelmgr_loop_lag_seconds_bucket", labels(le="0.02")] == 2
    assert samples["tunnelmgr_loop_lag_seconds_sum", labels()] == pytest.approx(0.315)


async def test_no_sample_has_the_time_of_its_creation() -> None:
    """The times at which counters were created are left out, which would be one more series for each."""
    metrics = metrics_of(FakeDaemon())
    metrics.measurements.record_request(request(), 0.01, 0.1)

    assert [name for name, _ in await scrape(metrics) if name.endswith("_created")] == []


async def test_limits_of_groups_have_their_metrics() -> None:
    """Each limit shows who waits now, and what has waited and was refused; without limits there is no sample."""
    daemon, metrics = FakeDaemon(), Metrics()
    metrics.watch(daemon)
    assert not any("_limit_" in name for name, _ in await scrape(metrics))

    daemon.limits = [LimitHealth("ci", "pull_rate", waiting=3, waits=9, waited_s=1.5, refused=2)]
    samples = await scrape(metrics)

    labels = frozenset({("group", "ci"), ("limit", "pull_rate")})
    names = ("waiting", "waits_total", "wait_seconds_total", "refused_total")
    assert [samples[f"tunnelmgr_limit_{name}", labels] for name in names] == [3, 9, 1.5, 2]
