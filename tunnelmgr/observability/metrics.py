"""Prometheus metrics, computed from the world at each scrape; labels are groups, forwards and phases, never agents.

Names follow https://prometheus.io/docs/practices/naming/.
"""

from collections import Counter as Tally
from collections.abc import Iterator, Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tunnelmgr.core.health import CacheHealth, LimitHealth, Telemetry
from tunnelmgr.core.registry_sharing import unshared_pairs
from tunnelmgr.core.tunnel import Endpoint, Phase
from tunnelmgr.core.world import status_of

LAG_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds. A bulk pull of one agent may delay another by 20 ms; systemd's watchdog ends a loop that hangs."""


class WorldCollector(Collector):
    """Computes samples from the world and the daemon's health."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        """Return the samples now."""
        yield from self._agents()
        yield from self._sources()
        yield from self._traffic()
        yield from self._cluster()
        yield from self._health()

    def _agents(self) -> Iterator[Metric]:
        world = self._telemetry.world
        family = GaugeMetricFamily(
            "tunnelmgr_agents", "Agents of this controller by group and phase", labels=["group", "phase"]
        )
        present = [
            record for id_, record in world.records.items() if record.present and not world.is_held_elsewhere(id_)
        ]
        tally = Tally((record.agent.group, status_of(world, record).phase) for record in present)
        for group in {record.agent.group for record in present}:
            for phase in Phase:
                family.add_metric([group, phase.value], tally[group, phase])
        yield family
        powerful = GaugeMetricFamily(
            "tunnelmgr_agents_with_powerful_key",
            "Agents on which the login key could do more than a tunnel needs",
            labels=["group"],
        )
        excess = Tally(record.agent.group for record in present if record.excess)
        for group in {record.agent.group for record in present}:
            powerful.add_metric([group], excess[group])
        yield powerful

    def _sources(self) -> Iterator[Metric]:
        ok = GaugeMetricFamily("tunnelmgr_source_ok", "1 if the source's last answer was complete", labels=["source"])
        last = GaugeMetricFamily(
            "tunnelmgr_source_last_success_timestamp_seconds",
            "Time of the last complete answer",
            labels=["source"],
        )
        missing = GaugeMetricFamily(
            "tunnelmgr_source_missing_agents",
            "Agents that the last listing lacked and that are kept for now",
            labels=["source"],
        )
        for view in self._telemetry.world.sources.values():
            ok.add_metric([view.name], int(view.ok))
            missing.add_metric([view.name], view.missing)
            if view.last_success is not None:
                last.add_metric([view.name], view.last_success)
        yield ok
        yield last
        yield missing

    def _traffic(self) -> Iterator[Metric]:
        world = self._telemetry.world
        channels = GaugeMetricFamily("tunnelmgr_channels", "Open channels", labels=["group"])
        carried = CounterMetricFamily("tunnelmgr_bytes", "Bytes carried", labels=["group", "direction"])
        counts: dict[str, list[int]] = {}
        for id_, traffic in self._telemetry.traffic.items():
            if id_ in world.records:
                sums = counts.setdefault(world.records[id_].agent.group, [0, 0, 0])
                for at, value in enumerate((traffic.channels, traffic.to_agent, traffic.from_agent)):
                    sums[at] += value
        for group, (open_now, to_agent, from_agent) in counts.items():
            channels.add_metric([group], open_now)
            carried.add_metric([group, "to_agent"], to_agent)
            carried.add_metric([group, "from_agent"], from_agent)
        yield channels
        yield carried

    def _cluster(self) -> Iterator[Metric]:
        cluster = self._telemetry.world.cluster
        if cluster is None:
            return
        states = GaugeMetricFamily("tunnelmgr_members", "Members of the cluster by state", labels=["state"])
        alive = sum(member.alive for member in cluster.members.values())
        states.add_metric(["alive"], alive)
        states.add_metric(["dead"], len(cluster.members) - alive)
        yield states
        own = cluster.members.get(cluster.me)
        differing = sum(own is not None and member.rules != own.rules for member in cluster.members.values())
        yield GaugeMetricFamily(
            "tunnelmgr_members_with_other_rules", "Members whose configuration differs from this one's", differing
        )
        living = {name for name, member in cluster.members.items() if member.alive}
        yield GaugeMetricFamily(
            "tunnelmgr_registries_not_shared",
            "Pairs of members whose registries do not have each other's uploads, or do not answer",
            unshared_pairs(self._telemetry.health().sharing, living),
        )
        yield GaugeMetricFamily(
            "tunnelmgr_database_reachable", "1 if the cluster's database answers", int(cluster.error is None)
        )

    def _health(self) -> Iterator[Metric]:
        facts = self._telemetry.health()
        yield GaugeMetricFamily("tunnelmgr_uptime_seconds", "Seconds since the start", value=facts.uptime_s)
        yield GaugeMetricFamily("tunnelmgr_state_ok", "1 if state can be written", value=int(facts.store_error is None))
        yield GaugeMetricFamily(
            "tunnelmgr_audit_ok",
            "1 if the audit log is written and lost nothing recently",
            int(facts.audit.error is None and not facts.audit.lost_recently),
        )
        yield CounterMetricFamily("tunnelmgr_audit_lost", "Audit entries that could not be written", facts.audit.lost)
        yield GaugeMetricFamily(
            "tunnelmgr_fast_path_active",
            "1 if bulk data bypasses asyncssh, 0 if it goes through asyncssh, more slowly",
            value=int(facts.fast_path.active),
        )
        yield from _cache(facts.cache)
        yield from _limits(facts.limits)
        reachable = int(facts.registry.reachable)
        yield GaugeMetricFamily("tunnelmgr_registry_reachable", "1 if the registry answers", value=reachable)


def _cache(cache: CacheHealth | None) -> Iterator[Metric]:
    if cache is None:
        return
    pulls = CounterMetricFamily(
        "tunnelmgr_cache_pulls",
        "Pulls by digest: served from the cache, fetched into it, or left to the registry",
        labels=["result"],
    )
    for result, number in (("hit", cache.hits), ("miss", cache.misses), ("bypass", cache.bypassed)):
        pulls.add_metric([result], number)
    yield pulls
    yield CounterMetricFamily("tunnelmgr_cache_sent_bytes", "Bytes sent to agents from the cache", cache.octets)
    yield GaugeMetricFamily("tunnelmgr_cache_used_bytes", "Bytes of the cache on disk", cache.used)
    yield GaugeMetricFamily("tunnelmgr_cache_size_bytes", "Bytes that the cache may use", cache.size)


def _limits(limits: Sequence[LimitHealth]) -> Iterator[Metric]:
    labels = ["group", "limit"]
    waiting = GaugeMetricFamily(
        "tunnelmgr_limit_waiting", "Requests and transfers that wait for a turn within a limit", labels=labels
    )
    waits = CounterMetricFamily("tunnelmgr_limit_waits", "Waits for a turn that have ended", labels=labels)
    seconds = CounterMetricFamily("tunnelmgr_limit_wait_seconds", "Seconds of these waits", labels=labels)
    refused = CounterMetricFamily("tunnelmgr_limit_refused", "Requests that had no turn in time", labels=labels)
    for one in limits:
        waiting.add_metric([one.group, one.limit], one.waiting)
        waits.add_metric([one.group, one.limit], one.waits)
        seconds.add_metric([one.group, one.limit], one.waited_s)
        refused.add_metric([one.group, one.limit], one.refused)
    yield from (waiting, waits, seconds, refused) if limits else ()


class MetricsServer:
    """Serves `/metrics`, counts the gate's requests, and records the loop's lag."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tunnelmgr_requests",
            "Requests through the gate",
            ["group", "forward", "action", "verdict", "status"],
            registry=self._registry,
        )
        self._lag = Histogram(
            "tunnelmgr_loop_lag_seconds",
            "How late the event loop was",
            registry=self._registry,
            buckets=LAG_BUCKETS,
        )
        self._runner: web.AppRunner | None = None

    def watch(self, telemetry: Telemetry) -> None:
        """Also serve what the daemon reports of its world and its health."""
        self._registry.register(WorldCollector(telemetry))

    def count(self, group: str, forward: str, action: str, verdict: str, status: int) -> None:
        """Count one request."""
        self._requests.labels(group, forward, action, verdict, str(status)).inc()

    def record_lag(self, seconds: float) -> None:
        """Record by how many seconds a timer of the event loop was late."""
        self._lag.observe(seconds)

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
