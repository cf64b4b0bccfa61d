"""Metrics of the collectors that get copies of the audit log."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tunnelmgr.core.health import AuditForwardHealth


def forward_samples(forwards: Sequence[AuditForwardHealth]) -> Iterator[Metric]:
    """Return the samples of all collectors; nothing if there are none."""
    if not forwards:
        return
    label = ["destination"]
    ok = GaugeMetricFamily("tunnelmgr_audit_forward_ok", "1 if the collector takes audit entries", labels=label)
    behind = GaugeMetricFamily(
        "tunnelmgr_audit_forward_behind", "Audit entries that the collector has not confirmed yet", labels=label
    )
    dropped = CounterMetricFamily(
        "tunnelmgr_audit_forward_dropped",
        "Audit entries that were removed before the collector could take them",
        labels=label,
    )
    for forward in forwards:
        ok.add_metric([forward.name], int(forward.error is None))
        behind.add_metric([forward.name], forward.behind)
        dropped.add_metric([forward.name], forward.dropped)
    yield ok
    yield behind
    yield dropped
