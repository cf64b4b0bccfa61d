"""Traces of tunnels: the steps of each start, its failure, and what requests are linked to."""

from dataclasses import dataclass, field

import pytest

from tests.daemon.test_request_tracing import Sink
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Event, TunnelBound, TunnelDialled, TunnelEnded, TunnelProbed
from tunnelmgr.core.failure import Failure
from tunnelmgr.daemon.traced_events import TracedEvents
from tunnelmgr.errors import Pace

AGENT = AgentId("static:builder-1")
REFUSED = Failure("host-key-mismatch", Pace.NEVER, "presented another key")


@dataclass
class Observed:
    """Traced events whose clock is `now`."""

    now: float = 100.0
    passed: list[Event] = field(default_factory=list)
    sink: Sink = field(default_factory=Sink)
    tunnels: dict[AgentId, tuple[int, int]] = field(default_factory=dict)
    traced: TracedEvents = field(init=False)

    def __post_init__(self) -> None:
        self.traced = TracedEvents(self, self.sink, self.tunnels, lambda: self.now)

    def report(self, event: Event) -> None:
        """Take what was passed on."""
        self.passed.append(event)

    def at(self, now: float, *events: Event) -> None:
        """Report events at a time."""
        self.now = now
        for event in events:
            self.traced.report(event)


@pytest.fixture
def observed() -> Observed:
    """Make traced events."""
    return Observed()


@pytest.fixture
def started(observed: Observed) -> Observed:
    """Bring a tunnel up."""
    observed.at(100.5, TunnelDialled(AGENT, 1, "192.0.2.7:22", took=0.5))
    observed.at(100.75, TunnelBound(AGENT, 1, ()))
    observed.at(101.0, TunnelProbed(AGENT, 1, 0.125))
    return observed


def steps(observed: Observed, number: int = 0) -> list[tuple[str, float, float]]:
    """Return the steps of a trace."""
    return [(span.name, span.began, span.ended) for span in observed.sink.traces[number].children]


def test_a_start_is_traced_when_the_tunnel_is_up(started: Observed) -> None:
    """Its steps are the dial, the listeners and the first probe; the requests of the agent are linked to it."""
    (trace,) = started.sink.traces

    assert (trace.root.name, trace.root.began, trace.root.ended, trace.root.error) == ("tunnel start", 100.0, 101.0, "")
    assert trace.root.attributes == {"tunnelmgr.agent": AGENT, "network.peer.address": "192.0.2.7:22"}
    assert steps(started) == [("dial", 100.0, 100.5), ("listen", 100.5, 100.75), ("probe", 100.875, 101.0)]
    assert started.tunnels == {AGENT: (trace.trace_id, trace.root.span_id)}


def test_later_probes_and_listeners_make_no_trace(started: Observed) -> None:
    """A tunnel that is up is not traced again."""
    started.at(110.0, TunnelBound(AGENT, 1, ()), TunnelProbed(AGENT, 1, 0.125))

    assert len(started.sink.traces) == 1


def test_listeners_that_are_reported_again_are_one_step(observed: Observed) -> None:
    """A second report before the first probe changes nothing."""
    observed.at(100.5, TunnelDialled(AGENT, 1, "192.0.2.7:22", took=0.5))
    observed.at(100.75, TunnelBound(AGENT, 1, ()), TunnelBound(AGENT, 1, ()))
    observed.at(101.0, TunnelProbed(AGENT, 1, 0.125))

    assert [name for name, *_ in steps(observed)] == ["dial", "listen", "probe"]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ((), [("dial", 102.0, 102.0)]),
        ((TunnelDialled(AGENT, 1, "192.0.2.7:22", took=0.5),), [("dial", 101.5, 102.0)]),
    ],
)
def test_a_start_that_fails_is_traced_with_the_code(
    observed: Observed, before: tuple[Event, ...], expected: list[tuple[str, float, float]]
) -> None:
    """The trace has the steps until then; no request is linked to it."""
    observed.at(102.0, *before, TunnelEnded(AGENT, 1, REFUSED))

    assert observed.sink.traces[0].root.error == "host-key-mismatch"
    assert steps(observed) == expected
    assert observed.tunnels == {}


@pytest.mark.parametrize("failure", [None, REFUSED])
def test_the_end_of_a_tunnel_ends_the_links_to_it(started: Observed, failure: Failure | None) -> None:
    """Its end is not traced as a start that failed, and what follows is linked to the next tunnel."""
    started.at(200.0, TunnelEnded(AGENT, 1, failure))

    assert len(started.sink.traces) == 1
    assert started.tunnels == {}


def test_a_start_that_is_given_up_makes_no_trace(observed: Observed) -> None:
    """If the controller closes a tunnel before it is up, nothing has failed."""
    observed.at(102.0, TunnelDialled(AGENT, 1, "192.0.2.7:22", took=0.5), TunnelEnded(AGENT, 1, None))

    assert observed.sink.traces == []


def test_every_event_is_passed_on_in_order(started: Observed) -> None:
    """The controller receives the events as they were reported."""
    assert [type(event) for event in started.passed] == [TunnelDialled, TunnelBound, TunnelProbed]
