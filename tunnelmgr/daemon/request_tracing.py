"""Traces of requests: which ones are traced, and the spans that are made of their stages when they have ended."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import RegistryAction
from tunnelmgr.gate.request_record import RequestRecord
from tunnelmgr.gate.request_trace import RequestTrace, Stage
from tunnelmgr.observability.spans import Kind, Span, Trace, TraceSink

MAX_PER_SECOND: Final = 10
"""Requests of one agent that are traced in a second, so that one that floods the gate does not displace the others."""


@dataclass(slots=True)
class RequestTracing:
    """Chooses requests to trace, and gives their traces to `sink`; traces nothing if that is None.

    `tunnels` has the trace and root span of each agent's tunnel, to which its requests are linked.
    """

    sink: TraceSink | None = None
    sample_ratio: float = 0.0
    tunnels: dict[AgentId, tuple[int, int]] = field(default_factory=dict)
    wall: Callable[[], float] = time.time
    _second: int = 0
    _traced: dict[AgentId, int] = field(default_factory=dict)

    def begin(self, agent: AgentId) -> RequestTrace | None:
        """Return a trace for a request that begins, None if it is not traced."""
        if self.sink is None or random.random() >= self.sample_ratio:  # noqa: S311 - it need not be secret
            return None
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._traced = second, {}
        traced = self._traced[agent] = self._traced.get(agent, 0) + 1
        return RequestTrace() if traced <= MAX_PER_SECOND else None

    def record(self, request: RequestRecord) -> None:
        """Make spans of a request that ends now, if it is traced."""
        if self.sink is not None and request.trace is not None:
            offset = self.wall() - time.monotonic()
            self.sink.add(request_trace(request, request.trace, offset, self.tunnels.get(request.caller.agent)))


def request_trace(record: RequestRecord, trace: RequestTrace, offset: float, tunnel: tuple[int, int] | None) -> Trace:
    """Return the spans of a request; `offset` is what the wall clock is ahead of the monotonic clock, in seconds.

    Names and attributes follow OpenTelemetry's conventions for HTTP servers, if these have one.
    """
    stages = [(stage, at + offset) for stage, at in trace.stages]
    began = stages[0][1]
    ended = began + record.took
    ends = [at for _, at in stages[1:]] + [ended]
    # An unknown request may have any method, and names should be few (OpenTelemetry's conventions for HTTP spans).
    method = "HTTP" if record.action == RegistryAction.UNKNOWN else record.method
    children = [_stage_span(stage, at, end, trace) for (stage, at), end in zip(stages, ends, strict=True)]
    attributes: dict[str, str | int | float] = {
        "http.request.method": "_OTHER" if method == "HTTP" else method,
        "http.response.status_code": record.status,
        "http.response.size": record.bytes_to_agent,
        "http.request.size": record.bytes_from_agent,
        "tunnelmgr.agent": record.caller.agent,
        "tunnelmgr.group": record.caller.group,
        "tunnelmgr.forward": record.caller.forward,
        "tunnelmgr.action": record.action,
        "tunnelmgr.repository": record.repository,
        "tunnelmgr.reference": record.reference,
        "tunnelmgr.verdict": record.verdict,
        "tunnelmgr.rule": record.rule,
    }
    name = f"{method} {record.action}"
    root = Span(name, began, ended, Kind.SERVER, attributes, record.error, span_id=trace.root_id)
    return Trace(root, children, tunnel, trace.trace_id)


def _stage_span(stage: Stage, began: float, ended: float, trace: RequestTrace) -> Span:
    if stage is Stage.REGISTRY:
        return Span(stage.value, began, ended, Kind.CLIENT, span_id=trace.registry_id)
    return Span(stage.value, began, ended)
