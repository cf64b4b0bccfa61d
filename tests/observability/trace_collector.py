"""A collector of traces on loopback: it takes OTLP over HTTP, decoded by OpenTelemetry's own messages."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class TraceCollector:
    """Keeps spans; `status` answers each request."""

    status: int = 200
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        """Take one request."""
        self.headers.append(headers)
        if self.status >= 300:
            return
        for entry in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in entry.resource.attributes})
            self.spans += [span for scope in entry.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        """Return the spans of a name."""
        return [span for span in self.spans if span.name == name]

    def children(self, parent: Span) -> list[Span]:
        """Return the spans whose parent is this one, in the order of their starts."""
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[int]:
        """Listen on loopback, and yield the port."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(body, dict(self.headers))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="trace collector")
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(10)
            server.server_close()


def attributes(span: Span) -> dict[str, str | int]:
    """Return a span's attributes."""
    return {pair.key: _value(pair) for pair in span.attributes}


def _value(pair: KeyValue) -> str | int:
    kind = pair.value.WhichOneof("value")
    return pair.value.int_value if kind == "int_value" else pair.value.string_value
