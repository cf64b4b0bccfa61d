"""Traces reach a collector whole; one that is away or refuses costs only traces, which are counted."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.observability.trace_collector import TraceCollector, attributes
from tests.ssh.ssh_server import free_port
from tests.until import until
from tunnelmgr.config import TracingConfig
from tunnelmgr.core.health import TracingHealth
from tunnelmgr.observability import span_export
from tunnelmgr.observability.span_export import SpanExport, export_error
from tunnelmgr.observability.spans import Kind, Span, Trace

TRACE = Trace(
    Span("GET pull", 100.0, 103.5, Kind.SERVER, {"tunnelmgr.group": "ci", "http.response.status_code": 200}, span_id=7),
    (Span("decide", 100.0, 100.5), Span("registry", 100.5, 103.0, Kind.CLIENT, span_id=9)),
    (11, 12),
    trace_id=5,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send batches often, and give up soon."""
    monkeypatch.setattr(span_export, "BATCH_INTERVAL_MS", 10)
    monkeypatch.setattr(span_export, "TIMEOUT", 0.2)


@pytest.fixture
def collector() -> Iterator[TraceCollector]:
    """Run a collector."""
    running = TraceCollector()
    with running.serving():
        yield running


def config(url: str, token_file: Path | None = None) -> TracingConfig:
    """Return a configuration."""
    return TracingConfig(url=url, token_file=token_file)


async def test_a_trace_arrives_as_it_was_given(collector: TraceCollector) -> None:
    """Times, kinds, attributes, identifiers, parents and the link are those that were given."""
    export = SpanExport(config(collector.url), "registry-1")

    export.add(TRACE)
    await until(lambda: export.health().exported == 3)
    export.close()

    (root,) = collector.named("GET pull")
    assert root.trace_id == (5).to_bytes(16)
    assert root.span_id == (7).to_bytes(8)
    assert not root.parent_span_id
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (100_000_000_000, 103_500_000_000)
    assert root.kind == root.SPAN_KIND_SERVER
    assert attributes(root) == {"tunnelmgr.group": "ci", "http.response.status_code": 200}
    assert [(link.trace_id, link.span_id) for link in root.links] == [((11).to_bytes(16), (12).to_bytes(8))]
    decide, registry = collector.children(root)
    assert (decide.name, registry.name) == ("decide", "registry")
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    assert registry.span_id == (9).to_bytes(8)
    assert registry.kind == registry.SPAN_KIND_CLIENT
    assert collector.resources[0]["service.name"] == "tunnelmgr"
    assert collector.resources[0]["service.instance.id"] == "registry-1"


async def test_an_error_is_one_in_the_trace(collector: TraceCollector) -> None:
    """The code of an error is the span's `error.type`, and its status is an error."""
    export = SpanExport(config(collector.url), "registry-1")

    export.add(Trace(Span("tunnel start", 1.0, 2.0, error="host-key-mismatch")))
    await until(lambda: collector.spans)
    export.close()

    (span,) = collector.spans
    assert attributes(span)["error.type"] == "host-key-mismatch"
    assert span.status.code == span.status.STATUS_CODE_ERROR


async def test_long_values_are_cut(collector: TraceCollector) -> None:
    """What an agent sends, such as a reference, takes little room in a trace."""
    export = SpanExport(config(collector.url), "registry-1")

    export.add(Trace(Span("GET pull", 1.0, 2.0, attributes={"tunnelmgr.reference": "x" * 10_000})))
    await until(lambda: collector.spans)
    export.close()

    assert attributes(collector.spans[0])["tunnelmgr.reference"] == "x" * span_export.MAX_VALUE


async def test_what_is_left_is_sent_at_the_end(collector: TraceCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing sends the traces that wait for their batch."""
    monkeypatch.setattr(span_export, "BATCH_INTERVAL_MS", 60_000)
    export = SpanExport(config(collector.url), "registry-1")

    export.add(TRACE)
    export.close()

    assert len(collector.spans) == 3


async def test_a_collector_that_is_away_costs_its_traces_only() -> None:
    """The failure is logged once and reported; the first success after it is logged too."""
    collector, port = TraceCollector(), free_port()
    export = SpanExport(config(f"http://127.0.0.1:{port}/v1/traces"), "registry-1")

    with capture_logs() as logs:
        for failures in (3, 6):
            export.add(TRACE)
            await until(lambda failures=failures: export.health().failed == failures)
        away = export.health()
        with collector.serving(port):
            export.add(TRACE)
            await until(lambda: export.health().exported == 3)
        export.close()

    assert away == TracingHealth(exported=0, failed=6, dropped=0, error="Connection refused")
    assert export.health().error is None
    assert [entry["event"] for entry in logs] == ["traces not exported", "traces exported again"]
    assert logs[0]["reason"] == "Connection refused"


async def test_a_refusal_is_reported_with_its_status(collector: TraceCollector) -> None:
    """The collector's status is the reason."""
    collector.status = 403
    export = SpanExport(config(collector.url), "registry-1")

    export.add(TRACE)
    await until(lambda: export.health().failed == 3)
    export.close()

    assert export.health().error == "the collector answered 403"


async def test_traces_are_dropped_while_too_many_wait(
    collector: TraceCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded: a trace that does not fit is counted and not kept, and those that wait arrive."""
    monkeypatch.setattr(span_export, "BATCH_INTERVAL_MS", 60_000)
    monkeypatch.setattr(span_export, "MAX_PENDING", 7)
    monkeypatch.setattr(span_export, "MAX_BATCH", 7)
    export = SpanExport(config(collector.url), "registry-1")

    for _ in range(4):
        export.add(TRACE)
    export.close()

    assert export.health() == TracingHealth(exported=6, failed=0, dropped=6, error=None)
    assert len(collector.spans) == 6


async def test_the_token_is_read_for_each_request(collector: TraceCollector, tmp_path: Path) -> None:
    """A new token needs no restart, and a file without one is the reason of the failure."""
    token = tmp_path / "token"
    token.touch()
    export = SpanExport(config(collector.url, token), "registry-1")
    wanted = itertools.count(3, 3)

    for text in ("first", "second"):
        token.write_text(text, encoding="ascii")
        token.chmod(0o600)
        export.add(TRACE)
        spans = next(wanted)
        await until(lambda spans=spans: export.health().exported == spans)
    token.write_text("", encoding="ascii")
    export.add(TRACE)
    await until(lambda: export.health().failed == 3)
    export.close()

    assert [headers["Authorization"] for headers in collector.headers] == ["Bearer first", "Bearer second"]
    assert export.health().error == f"token_file: {token} does not hold one line with a token"


def test_a_collector_is_checked_with_an_empty_request(collector: TraceCollector) -> None:
    """`check` says why a collector takes no traces."""
    assert export_error(config(collector.url)) is None
    collector.status = 404
    assert export_error(config(collector.url)) == "the collector answered 404"
    assert export_error(config(f"http://127.0.0.1:{free_port()}/v1/traces")) == "Connection refused"


def test_the_sdk_logs_nothing_itself(collector: TraceCollector, caplog: pytest.LogCaptureFixture) -> None:
    """What a collector answers does not reach the log, however often it is asked."""
    collector.status = 500
    with caplog.at_level(logging.DEBUG):
        export_error(config(collector.url))

    assert not [entry for entry in caplog.records if entry.name.startswith("opentelemetry")]
