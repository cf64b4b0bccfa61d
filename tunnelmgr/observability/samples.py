"""Samples that are computed from the world and the daemon's health at each scrape; labels never name agents."""

import platform
import resource
import time
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tunnelmgr.core.health import CacheHealth, DialCounts, LimitHealth, Telemetry, TracingHealth
from tunnelmgr.core.registry_sharing import unshared_pairs
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import status_of
from tunnelmgr.observability.audit_samples import forward_samples
from tunnelmgr.observability.traffic_totals import TrafficTotals

PAGE = resource.getpagesize()
PYTHON, ASYNCSSH = platform.python_version(), version("asyncssh")


class WorldCollector(Collector):
    """Computes samples from the world and the daemon's health."""

    def __init__(self, telemetry: Telemetry, totals: TrafficTotals) -> None:
        self._telemetry = telemetry
        self._totals = totals

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
        world, traffic = self._telemetry.world, self._telemetry.traffic
        channels = GaugeMetricFamily("tunnelmgr_channels", "Open channels", labels=["group"])
        open_now: Tally[str] = Tally()
        for id_, counters in traffic.items():
            if id_ in world.records:
                open_now[world.records[id_].agent.group] += counters.channels
        for group, count in open_now.items():
            channels.add_metric([group], count)
        yield channels
        carried = CounterMetricFamily("tunnelmgr_bytes", "Bytes carried", labels=["group", "direction"])
        self._totals.add(world, traffic)
        for (group, direction), total in self._totals.items():
            carried.add_metric([group, direction], total)
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
        yield _build(facts.version)
        yield from _process()
        yield GaugeMetricFamily("tunnelmgr_uptime_seconds", "Seconds since the start", value=facts.uptime_s)
        yield GaugeMetricFamily("tunnelmgr_state_ok", "1 if state can be written", value=int(facts.store_error is None))
        yield GaugeMetricFamily(
            "tunnelmgr_audit_ok",
            "1 if the audit log is written and lost nothing recently",
            int(facts.audit.error is None and not facts.audit.lost_recently),
        )
        yield CounterMetricFamily("tunnelmgr_audit_lost", "Audit entries that could not be written", facts.audit.lost)
        yield from forward_samples(facts.audit.forwards)
        yield GaugeMetricFamily(
            "tunnelmgr_fast_path_active",
            "1 if bulk data bypasses asyncssh, 0 if it goes through asyncssh, more slowly",
            value=int(facts.fast_path.active),
        )
        yield from _dials(facts.dials)
        yield from _cache(facts.cache)
        yield from _limits(facts.limits)
        yield from _tracing(facts.tracing)
        reachable = int(facts.registry.reachable)
        yield GaugeMetricFamily("tunnelmgr_registry_reachable", "1 if the registry answers", value=reachable)


def _build(release: str) -> Metric:
    """Return a sample whose labels say what runs; its value is always 1."""
    family = GaugeMetricFamily(
        "tunnelmgr_build_info", "Always 1; the labels are versions", labels=["version", "python", "asyncssh"]
    )
    family.add_metric([release, PYTHON, ASYNCSSH], 1)
    return family


def _process() -> Iterator[Metric]:
    """Return what the process uses, under the names that all exporters have.

    The library's own collector also lists the open files, which holds the loop for 15 ms if there are 10,000 of them.
    """
    yield CounterMetricFamily("process_cpu_seconds", "CPU time of the process, user and system", time.process_time())
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])  # proc(5): in pages
    yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory of the process", resident * PAGE)


def _dials(dials: DialCounts) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "tunnelmgr_dials_waiting",
        "Dials and host key scans that wait for their turn to connect, or to compute a handshake",
        labels=["to"],
    )
    waiting.add_metric(["connect"], dials.waiting_to_connect)
    waiting.add_metric(["compute"], dials.waiting_to_compute)
    yield waiting
    yield GaugeMetricFamily(
        "tunnelmgr_dials_in_progress", "Dials and host key scans that were admitted", dials.admitted
    )


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


def _tracing(tracing: TracingHealth | None) -> Iterator[Metric]:
    if tracing is None:
        return
    spans = CounterMetricFamily(
        "tunnelmgr_trace_spans",
        "Spans that the collector has taken, that it has not taken, or that were dropped while too many waited",
        labels=["result"],
    )
    for result, number in (("exported", tracing.exported), ("failed", tracing.failed), ("dropped", tracing.dropped)):
        spans.add_metric([result], number)
    yield spans
