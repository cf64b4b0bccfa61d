"""Exports finished traces to a collector with OpenTelemetry's SDK, over OTLP/HTTP.

A trace is given whole, when it has ended, so that what is measured need not know OpenTelemetry. The SDK sends spans
in batches, in a thread of its own. If the collector is slow or away, new traces are dropped and counted: nothing waits.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any, Final

import requests
import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import (
    Span as OpenSpan,
)

from tunnelmgr import __version__
from tunnelmgr.config import TracingConfig
from tunnelmgr.core.health import TracingHealth
from tunnelmgr.observability.collector import TokenError, prepare_session, request_failure, trusted_certificates
from tunnelmgr.observability.spans import Kind, Span, Trace

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()

MAX_PENDING: Final = 2048
"""Spans that wait for the collector; the default of the SDK's queue."""
MAX_BATCH: Final = 128
"""Spans of one request to the collector. The event loop cannot run while they are encoded."""
BATCH_INTERVAL_MS: Final = 1000
TIMEOUT: Final = 10.0
"""Seconds for one request to the collector, with its repetitions."""
MAX_VALUE: Final = 512
"""Characters of an attribute's value; an agent chooses some."""
_CLOSE_TIMEOUT: Final = 2.0
"""Seconds in which the collector gets the last spans at a stop."""


class SpanExport:
    """Exports traces to the collector of a configuration; its thread starts at once."""

    def __init__(self, config: TracingConfig, controller: str) -> None:
        self._exporter = _CountingExporter(config)
        self._ids = _GivenIds()
        facts = {"service.name": "tunnelmgr", "service.version": __version__, "service.instance.id": controller}
        self._provider = TracerProvider(
            resource=Resource.create(facts),
            sampler=ALWAYS_ON,
            id_generator=self._ids,
            span_limits=SpanLimits(max_span_attribute_length=MAX_VALUE),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=MAX_PENDING,
                schedule_delay_millis=BATCH_INTERVAL_MS,
                max_export_batch_size=MAX_BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("tunnelmgr", __version__)
        self._added = 0
        self._dropped = 0

    def add(self, trace: Trace) -> None:
        """Export a trace soon; drops it if too many wait already. Returns at once."""
        spans = 1 + len(trace.children)
        if self._added - self._exporter.finished + spans > MAX_PENDING:
            self._dropped += spans
            return
        self._added += spans
        links = [] if trace.link is None else [Link(SpanContext(*trace.link, is_remote=False, trace_flags=_SAMPLED))]
        root = self._start(trace, trace.root, None, links)
        context = set_span_in_context(root)
        for child in trace.children:
            self._start(trace, child, context, []).end(_nanoseconds(child.ended))
        root.end(_nanoseconds(trace.root.ended))

    def health(self) -> TracingHealth:
        """Return what has become of the spans so far."""
        exporter = self._exporter
        return TracingHealth(exporter.exported, exporter.failed, self._dropped, exporter.error)

    def close(self) -> None:
        """Send what is left, within some seconds, and end the thread."""
        closing = threading.Thread(target=self._provider.shutdown, name="end of traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT)

    def _start(self, trace: Trace, span: Span, context: Context | None, links: Sequence[Link]) -> OpenSpan:
        self._ids.trace_id, self._ids.span_id = trace.trace_id, span.span_id
        started = self._tracer.start_span(
            span.name,
            context=context,
            kind=_KINDS[span.kind],
            attributes=span.attributes,
            links=links,
            start_time=_nanoseconds(span.began),
        )
        if span.error:
            started.set_attribute("error.type", span.error)
            started.set_status(Status(StatusCode.ERROR))
        return started


def export_error(config: TracingConfig) -> str | None:
    """Return why a collector takes no traces, None if it takes an empty request; blocks."""
    exporter = _CountingExporter(config, logs=False)
    exporter.export([])
    exporter.shutdown()
    return exporter.error


class _GivenIds(IdGenerator):
    """Gives the next span the identifiers that were set: the registry was told one before its span could be made."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _Session(requests.Session):
    """Keeps why the last request failed, which the SDK only logs."""

    failure = ""

    def request(self, *args: Any, **options: Any) -> requests.Response:  # noqa: ANN401 - as requests takes them
        try:
            answer = super().request(*args, **options)
        except requests.RequestException as failed:
            self.failure = request_failure(failed)
            raise
        except TokenError as invalid:
            self.failure = str(invalid)
            raise
        self.failure = "" if answer.ok else f"the collector answered {answer.status_code}"
        return answer


class _CountingExporter(SpanExporter):
    """Sends batches, counts their spans, and logs when the collector begins and ceases to refuse them."""

    def __init__(self, config: TracingConfig, *, logs: bool = True) -> None:
        # The SDK logs each attempt, with what the collector says; this logs the first failure.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._logs = logs
        self.exported = 0
        self.failed = 0
        self.error: str | None = None
        self._url = config.url
        self._session = _Session()
        prepare_session(self._session, config.token_file)
        self._inner = OTLPSpanExporter(
            endpoint=config.url,
            certificate_file=trusted_certificates(config.ca_file),
            timeout=TIMEOUT,
            session=self._session,
        )

    @property
    def finished(self) -> int:
        """Spans that no longer wait."""
        return self.exported + self.failed

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
            if self.error is not None:
                log.info("traces exported again", url=self._url, failed=self.failed)
            self.error = None
            return result
        self.failed += len(spans)
        before, self.error = self.error, self._session.failure or "the collector did not take them in time"
        if before is None and self._logs:
            log.warning("traces not exported", url=self._url, reason=self.error)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]


_KINDS: Final = {Kind.INTERNAL: SpanKind.INTERNAL, Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
