"""Tracing as a whole: off without `[tracing]`; else the traces of tunnels and requests, and their export."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from tunnelmgr.config import Config, TracingConfig
from tunnelmgr.core.health import TracingHealth
from tunnelmgr.core.ports import EventSink
from tunnelmgr.daemon.request_tracing import RequestTracing
from tunnelmgr.daemon.traced_events import TracedEvents
from tunnelmgr.errors import ConfigError

if TYPE_CHECKING:
    from tunnelmgr.observability.span_export import SpanExport


@dataclass(frozen=True, slots=True)
class Tracing:
    """The traces of requests, and their export, None if tracing is off."""

    export: Optional["SpanExport"] = None
    requests: RequestTracing = field(default_factory=RequestTracing)

    def watch(self, events: EventSink) -> EventSink:
        """Return where tunnels report their events, so that their starts are traced if tracing is on."""
        return events if self.export is None else TracedEvents(events, self.export, self.requests.tunnels)

    def health(self) -> TracingHealth | None:
        """Return what has become of the spans, None if tracing is off."""
        return None if self.export is None else self.export.health()

    def close(self) -> None:
        """Export what is left; blocks for some seconds at most."""
        if self.export is not None:
            self.export.close()


def make_tracing(config: Config) -> Tracing:
    """Return the tracing that a configuration describes; raises ConfigError if OpenTelemetry's SDK is missing."""
    settings = config.tracing
    if settings is None:
        return Tracing()
    _require_sdk()
    from tunnelmgr.observability.span_export import SpanExport  # noqa: PLC0415 - an optional extra

    export = SpanExport(settings, config.controller.name)
    return Tracing(export, RequestTracing(export, settings.sample_ratio))


def tracing_error(config: TracingConfig) -> str | None:
    """Return why a collector takes no traces, None if it takes an empty request; blocks."""
    try:
        _require_sdk()
    except ConfigError as missing:
        return str(missing)
    from tunnelmgr.observability.span_export import export_error  # noqa: PLC0415 - an optional extra

    return export_error(config)


def _require_sdk() -> None:
    try:
        import opentelemetry.exporter.otlp.proto.http  # noqa: PLC0415 - an optional extra
        import opentelemetry.sdk.trace  # noqa: F401, PLC0415 - as above
    except ImportError as missing:
        cure = "install the packages of requirements.lock, or remove [tracing]"
        raise ConfigError([f"tracing: OpenTelemetry's SDK is not installed; {cure}"]) from missing
