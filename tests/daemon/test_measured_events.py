"""What is measured of the workers' reports, read from a real registry of metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry

from tests.control.fake_daemon import NOW, record, world
from tunnelmgr.core.events import Event, FeedClosed, TunnelDialled, TunnelEnded, TunnelProbed
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.world import HistoryEntry, World
from tunnelmgr.daemon.measured_events import MeasuredEvents, new_since
from tunnelmgr.errors import Pace
from tunnelmgr.observability.measurements import Measurements

AGENT = record("builder-1").agent.id
LOST = Failure("connection-lost", Pace.SOON, "reset")


@dataclass
class Observed:
    """The events of a world with one agent of group ci, first seen at `NOW`; `clock` is the time."""

    world: World = field(default_factory=lambda: world((record("builder-1"), None)))
    now: float = NOW + 12.5
    passed: list[Event] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    measured: MeasuredEvents = field(init=False)

    def __post_init__(self) -> None:
        self.measured = MeasuredEvents(self, self, Measurements(self.registry), lambda: self.now)

    def report(self, event: Event) -> None:
        """Take what was passed on."""
        self.passed.append(event)

    def value(self, sample: str, **labels: str) -> float | None:
        """Return the value of a sample."""
        return self.registry.get_sample_value(sample, labels)

    def up(self, life: int = 1) -> None:
        """Report that the tunnel has come up."""
        self.measured.report(TunnelDialled(AGENT, life, "192.0.2.7", took=0.3))
        self.measured.report(TunnelProbed(AGENT, life, 0.004))


@pytest.fixture
def observed() -> Observed:
    """Make a world with one agent."""
    return Observed()


def test_every_event_is_passed_on_in_order(observed: Observed) -> None:
    """The controller receives the events as they were reported, also those that are not measured."""
    events = [
        FeedClosed("office"),
        TunnelDialled(AGENT, 1, "192.0.2.7"),
        TunnelProbed(AGENT, 1, 0.004),
        TunnelEnded(AGENT, 1, None),
    ]
    for event in events:
        observed.measured.report(event)

    assert observed.passed == events


def test_dials_and_probes_are_measured_by_group(observed: Observed) -> None:
    """The seconds of a dial and of each probe are added to the histograms of the agent's group."""
    observed.up()
    observed.measured.report(TunnelProbed(AGENT, 1, 0.3))

    assert observed.value("tunnelmgr_dial_duration_seconds_sum", group="ci") == 0.3
    assert observed.value("tunnelmgr_probe_duration_seconds_count", group="ci") == 2
    assert observed.value("tunnelmgr_probe_duration_seconds_bucket", group="ci", le="0.005") == 1


def test_the_time_to_up_is_that_of_the_first_tunnel(observed: Observed) -> None:
    """It counts from the agent's first appearance to the first probe, and neither later probes nor later tunnels."""
    observed.up()
    observed.now += 1000
    observed.measured.report(TunnelProbed(AGENT, 1, 0.004))
    known = observed.world.records[AGENT]
    observed.world = observed.world.with_record(known.with_step(NOW + 12.5, "probed", "up"))
    observed.measured.report(TunnelEnded(AGENT, 1, LOST))
    observed.up(life=2)

    assert observed.value("tunnelmgr_time_to_up_seconds_count", group="ci") == 1
    assert observed.value("tunnelmgr_time_to_up_seconds_sum", group="ci") == 12.5


def entries(*steps: str) -> tuple[HistoryEntry, ...]:
    """Return a history with these steps, one each second."""
    return tuple(HistoryEntry(NOW + at, step, "") for at, step in enumerate(steps))


@pytest.mark.parametrize(
    ("steps", "since"),
    [
        ("seen evidence dialled failed", 0),
        ("seen dialled probed lost rebuilt evidence", 4),
        ("seen dialled probed left seen", 4),
        ("seen dialled bound probed", None),
        ("lost failed failed", None),
        ("evidence dialled", None),
        ("", None),
    ],
)
def test_a_machine_is_new_until_its_first_tunnel(steps: str, since: int | None) -> None:
    """A machine that was rebuilt, or that comes back, is new again; one whose appearance is forgotten is not."""
    assert new_since(entries(*steps.split())) == (None if since is None else NOW + since)


@pytest.mark.parametrize(
    ("failure", "code"), [(None, "closed"), (LOST, "connection-lost"), (replace(LOST, code="of a plug-in"), "other")]
)
def test_ends_are_counted_by_code_and_by_whether_the_tunnel_was_up(
    observed: Observed, failure: Failure | None, code: str
) -> None:
    """A dial that fails counts as `connecting`, a tunnel that was up as `up`, each life by itself."""

    def ended() -> Mapping[str, float | None]:
        return {
            phase: observed.value("tunnelmgr_tunnels_ended_total", group="ci", phase=phase, code=code)
            for phase in ("connecting", "up")
        }

    observed.measured.report(TunnelEnded(AGENT, 1, failure))
    first = ended()
    observed.up(life=2)
    observed.measured.report(TunnelEnded(AGENT, 2, failure))
    second = ended()
    observed.measured.report(TunnelEnded(AGENT, 3, failure))

    assert first == {"connecting": 1, "up": None}
    assert second == {"connecting": 1, "up": 1}
    assert ended() == {"connecting": 2, "up": 1}


def test_an_agent_that_was_forgotten_belongs_to_no_group(observed: Observed) -> None:
    """The end of a tunnel whose agent is no longer known is counted under `other`."""
    observed.world = world()
    observed.measured.report(TunnelEnded(AGENT, 1, None))

    assert observed.value("tunnelmgr_tunnels_ended_total", group="other", phase="connecting", code="closed") == 1
