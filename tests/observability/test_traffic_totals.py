"""The totals of traffic by group: counters for Prometheus, which takes each decrease as a restart."""

from dataclasses import dataclass, field, replace
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.control.fake_daemon import FakeDaemon, record, world
from tunnelmgr.controller import Controller
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Event
from tunnelmgr.core.world import World
from tunnelmgr.daemon.active_configuration import ActiveConfiguration
from tunnelmgr.daemon.housekeeping import Housekeeping, make_scheduler
from tunnelmgr.daemon.recent_activity import RecentActivity
from tunnelmgr.daemon.registry_health import RegistryWatch
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.observability.metrics import Metrics

ONE, OTHER = record("builder-1"), record("builder-2")


@dataclass
class Fleet:
    """Two agents of group ci with their traffic, as the metrics and the housekeeping see them."""

    world: World = field(default_factory=lambda: world((ONE, None), (OTHER, None)))
    activity: RecentActivity = field(default_factory=lambda: RecentActivity(lambda: 0.0))
    metrics: Metrics = field(default_factory=Metrics)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.activity.traffic |= {ONE.agent.id: Traffic(0, 100, 10), OTHER.agent.id: Traffic(0, 20, 2)}
        self._daemon = FakeDaemon(traffic=self.activity.traffic)
        self.metrics.watch(self._daemon)

    def report(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def scraped(self) -> dict[tuple[str, str], float]:
        """Return the bytes by group and direction."""
        self._daemon.world = self.world
        text = self.metrics.exposition("")[0].decode()
        return {
            (sample.labels["group"], sample.labels["direction"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "tunnelmgr_bytes_total"
        }

    async def forget(self) -> None:
        """Run the job that forgets agents."""
        registry = RegistryWatch(cast("ActiveConfiguration", None))
        parts = (registry, self.metrics, self.activity)
        controller = cast("Controller", self)
        await Housekeeping(make_scheduler(), controller, *parts, lambda: 0.0, lambda: 0.0).forget()

    def remove(self, id_: AgentId) -> None:
        """Remove the record of an agent, as the controller does some time after the job."""
        records = {name: entry for name, entry in self.world.records.items() if name != id_}
        self.world = replace(self.world, records=records)


@pytest.fixture
def fleet() -> Fleet:
    """Make a fleet."""
    return Fleet()


def test_bytes_are_added_at_each_scrape(fleet: Fleet) -> None:
    """Each scrape adds what was carried since the last one, and an idle scrape adds nothing."""
    first, idle = fleet.scraped(), fleet.scraped()
    fleet.activity.traffic[ONE.agent.id].to_agent += 5

    assert first == idle == {("ci", "to_agent"): 120, ("ci", "from_agent"): 12}
    assert fleet.scraped() == {("ci", "to_agent"): 125, ("ci", "from_agent"): 12}


async def test_bytes_of_a_forgotten_agent_stay(fleet: Fleet) -> None:
    """The total does not fall if an agent is forgotten, also if nothing was scraped before."""
    await fleet.forget()
    fleet.remove(ONE.agent.id)
    await fleet.forget()

    assert list(fleet.activity.traffic) == [OTHER.agent.id]
    assert fleet.scraped() == {("ci", "to_agent"): 120, ("ci", "from_agent"): 12}


async def test_bytes_of_an_agent_that_returns_are_added(fleet: Fleet) -> None:
    """An agent that was forgotten and returns counts from zero, and all its bytes are added."""
    everyone = fleet.world
    await fleet.forget()
    fleet.remove(ONE.agent.id)
    await fleet.forget()

    fleet.world = everyone
    fleet.activity.traffic[ONE.agent.id] = Traffic(0, 7, 1)

    assert fleet.scraped() == {("ci", "to_agent"): 127, ("ci", "from_agent"): 13}


def test_bytes_stay_in_the_old_group_of_an_agent(fleet: Fleet) -> None:
    """If an agent changes its group, its earlier bytes stay where they were, and only later ones count for the new."""
    fleet.scraped()
    moved = replace(ONE, agent=replace(ONE.agent, group="release"))
    fleet.world = world((moved, None), (OTHER, None))
    fleet.activity.traffic[ONE.agent.id].from_agent += 3

    assert fleet.scraped() == {
        ("ci", "to_agent"): 120,
        ("ci", "from_agent"): 12,
        ("release", "to_agent"): 0,
        ("release", "from_agent"): 3,
    }
