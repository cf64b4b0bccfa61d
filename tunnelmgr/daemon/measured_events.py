"""Measures what workers report, on its way to the controller. Most reports are probes, so each costs little."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Event, TunnelDialled, TunnelEnded, TunnelProbed
from tunnelmgr.core.ports import EventSink, WorldView
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import HistoryEntry
from tunnelmgr.observability.measurements import OTHER, Measurements

APPEARANCES = frozenset({"seen", "rebuilt"})
"""The steps of a history with which a machine begins."""
SIGNS_OF_TUNNELS = frozenset({"probed", "lost"})
"""The steps that say that a machine had a tunnel."""


@dataclass(slots=True)
class MeasuredEvents:
    """Passes events on to `sink`, and measures those of tunnels; `clock` is that of the histories."""

    sink: EventSink
    view: WorldView
    measurements: Measurements
    clock: Callable[[], float]
    _up: set[AgentId] = field(default_factory=set)

    def report(self, event: Event) -> None:
        """Measure an event and pass it on."""
        match event:
            case TunnelProbed():
                self._probed(event)
            case TunnelDialled():
                self.measurements.record_dial(self._group(event.agent), event.took)
            case TunnelEnded():
                self._ended(event)
            case _:
                pass
        self.sink.report(event)

    def _probed(self, event: TunnelProbed) -> None:
        group = self._group(event.agent)
        self.measurements.record_probe(group, event.took)
        if event.agent in self._up:
            return
        self._up.add(event.agent)
        record = self.view.world.records.get(event.agent)
        appeared = None if record is None else new_since(record.history)
        if appeared is not None:
            self.measurements.record_first_up(group, max(0.0, self.clock() - appeared))

    def _ended(self, event: TunnelEnded) -> None:
        """Record the end; there is one for each worker, so the set of agents that are up does not grow."""
        phase = Phase.UP if event.agent in self._up else Phase.CONNECTING
        self._up.discard(event.agent)
        code = None if event.failure is None else event.failure.code
        self.measurements.record_end(self._group(event.agent), phase, code)

    def _group(self, agent: AgentId) -> str:
        """Return an agent's group; an agent that was forgotten meanwhile has none."""
        record = self.view.world.records.get(agent)
        return OTHER if record is None else record.agent.group


def new_since(history: tuple[HistoryEntry, ...]) -> float | None:
    """Return when a machine appeared, None if it has had a tunnel since, or if that is no longer known."""
    for entry in reversed(history):
        if entry.step in APPEARANCES:
            return entry.at
        if entry.step in SIGNS_OF_TUNNELS:
            return None
    return None
