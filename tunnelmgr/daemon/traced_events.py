"""Traces of tunnels: how long each step of a start took, and why it failed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Event, TunnelBound, TunnelDialled, TunnelEnded, TunnelProbed
from tunnelmgr.core.ports import EventSink
from tunnelmgr.observability.spans import Span, Trace, TraceSink


@dataclass(slots=True)
class _Start:
    """A tunnel that is logged in and not up yet: what is known of it, and its steps so far."""

    attributes: dict[str, str]
    steps: list[Span] = field(default_factory=list)


@dataclass(slots=True)
class TracedEvents:
    """Passes events on to `events`, and makes a trace of each tunnel's start or of its failure.

    `tunnels` gets the trace of each tunnel that is up, for the traces of its requests. Of a dial that fails before the
    login, only the time of its end is known.
    """

    events: EventSink
    sink: TraceSink
    tunnels: dict[AgentId, tuple[int, int]]
    wall: Callable[[], float] = time.time
    _starts: dict[AgentId, _Start] = field(default_factory=dict)

    def report(self, event: Event) -> None:
        """Trace an event and pass it on."""
        match event:
            case TunnelDialled():
                now = self.wall()
                attributes = {"tunnelmgr.agent": event.agent, "network.peer.address": event.address}
                self._starts[event.agent] = _Start(attributes, [Span("dial", now - event.took, now)])
            case TunnelBound() if (start := self._starts.get(event.agent)) is not None and len(start.steps) == 1:
                start.steps.append(Span("listen", start.steps[-1].ended, self.wall()))
            case TunnelProbed() if (start := self._starts.pop(event.agent, None)) is not None:
                now = self.wall()
                start.steps.append(Span("probe", now - event.took, now))
                self._finish(event.agent, start)
            case TunnelEnded():
                self._ended(event)
            case _:
                pass
        self.events.report(event)

    def _ended(self, event: TunnelEnded) -> None:
        """Trace a start that failed; the end of a tunnel that was up is in the audit and the metrics."""
        start = self._starts.pop(event.agent, None)
        was_up = self.tunnels.pop(event.agent, None) is not None
        if event.failure is None or was_up:
            return
        if start is None:
            start = _Start({"tunnelmgr.agent": event.agent}, [Span("dial", now := self.wall(), now)])
        self._finish(event.agent, start, event.failure.code)

    def _finish(self, agent: AgentId, start: _Start, error: str = "") -> None:
        began = start.steps[0].began
        root = Span("tunnel start", began, self.wall(), attributes=start.attributes, error=error)
        trace = Trace(root, start.steps)
        self.sink.add(trace)
        if not error:
            self.tunnels[agent] = trace.trace_id, root.span_id
