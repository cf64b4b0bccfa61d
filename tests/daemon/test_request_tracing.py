"""Which requests are traced, and the spans that are made of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from tests.gate.conftest import CALLER
from tunnelmgr.core.agent import AgentId
from tunnelmgr.daemon import request_tracing
from tunnelmgr.daemon.request_tracing import MAX_PER_SECOND, RequestTracing
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.request_trace import RequestTrace, Stage
from tunnelmgr.observability.spans import Kind, Trace

AGENT, OTHER = CALLER.agent, AgentId("static:builder-2")
TRACE = RequestTrace(5, 7, 9, [(Stage.READ, 1000.0), (Stage.DECIDE, 1000.25), (Stage.REGISTRY, 1000.5)])
RECORD = RequestRecord(
    CALLER, "GET", "pull", "team/app", "v1", "allowed", "pull[0]", 200, 900, 100, took=3.0, latency=2.0, trace=TRACE
)


@dataclass
class Sink:
    """Keeps traces."""

    traces: list[Trace] = field(default_factory=list)

    def add(self, trace: Trace) -> None:
        """Keep one."""
        self.traces.append(trace)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the monotonic clock."""

    def set_clock(now: float) -> None:
        monkeypatch.setattr(request_tracing, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))

    return set_clock


def test_the_ratio_decides_how_many_requests_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1 every request is traced, with 0 none, between them the part that it says."""
    numbers = iter([0.0, 0.24, 0.25, 0.99])
    monkeypatch.setattr(request_tracing.random, "random", lambda: next(numbers))

    traced = [RequestTracing(Sink(), 0.25).begin(AGENT) is not None for _ in range(4)]

    assert traced == [True, True, False, False]


def test_nothing_is_traced_without_a_collector() -> None:
    """Tracing is off unless a configuration names a collector."""
    tracing = RequestTracing()

    assert tracing.begin(AGENT) is None
    tracing.record(RECORD)


def test_an_agent_that_floods_the_gate_leaves_room_for_the_others(at: Callable[[float], None]) -> None:
    """Each agent has its own share in each second."""
    tracing = RequestTracing(Sink(), 1.0)

    at(50.1)
    flood = [tracing.begin(AGENT) is not None for _ in range(3 * MAX_PER_SECOND)]
    others = tracing.begin(OTHER)
    at(51.0)
    later = tracing.begin(AGENT)

    assert flood == [True] * MAX_PER_SECOND + [False] * 2 * MAX_PER_SECOND
    assert others is not None
    assert later is not None


def test_a_request_is_a_span_with_one_for_each_stage(at: Callable[[float], None]) -> None:
    """Times are those of the wall clock; each stage lasts until the next one, the last one until the end."""
    sink = Sink()
    at(1003.0)

    RequestTracing(sink, 1.0, {AGENT: (11, 12)}, wall=lambda: 1_700_000_003.0).record(RECORD)

    (trace,) = sink.traces
    root = trace.root
    assert (trace.trace_id, root.span_id, trace.link) == (5, 7, (11, 12))
    assert (root.name, root.kind, root.began, root.ended) == ("GET pull", Kind.SERVER, 1_700_000_000.0, 1_700_000_003.0)
    assert root.attributes["tunnelmgr.agent"] == "static:builder-1"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["http.response.size"] == 900
    assert [(span.name, span.began - root.began, span.ended - root.began) for span in trace.children] == [
        ("read head", 0.0, 0.25),
        ("decide", 0.25, 0.5),
        ("registry", 0.5, 3.0),
    ]
    assert [span.kind for span in trace.children] == [Kind.INTERNAL, Kind.INTERNAL, Kind.CLIENT]
    assert trace.children[2].span_id == 9


def test_a_failure_is_the_error_of_its_span(at: Callable[[float], None]) -> None:
    """The registry's failure has its code in the trace."""
    sink = Sink()
    at(1003.0)

    RequestTracing(sink, 1.0).record(replace(RECORD, status=503, error="registry-unavailable"))

    assert sink.traces[0].root.error == "registry-unavailable"
    assert sink.traces[0].link is None


def test_a_method_that_an_agent_invents_names_no_span(at: Callable[[float], None]) -> None:
    """The names of spans are few, regardless of what agents send."""
    sink = Sink()
    at(1003.0)

    RequestTracing(sink, 1.0).record(replace(RECORD, method="BREW", action="unknown", verdict="refused"))

    assert sink.traces[0].root.name == "HTTP unknown"
    assert sink.traces[0].root.attributes["http.request.method"] == "_OTHER"


def test_a_request_that_is_not_traced_makes_no_span() -> None:
    """Its record passes by."""
    sink = Sink()

    RequestTracing(sink, 1.0).record(replace(RECORD, trace=None))

    assert sink.traces == []
