"""Which conditions make the controller ready."""

from dataclasses import replace

from tests.control.fake_daemon import NOW, FakeDaemon
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.health import DaemonHealth, RegistryHealth
from tunnelmgr.core.ownership import Lease, Member
from tunnelmgr.core.readiness import readiness
from tunnelmgr.core.world import SourceView, Stage, World

HEALTH = FakeDaemon().health()


def failing(world: World, health: DaemonHealth = HEALTH) -> dict[str, str]:
    """Return the messages of the checks that fail, by name."""
    return {check.name: check.message for check in readiness(world, health) if not check.ok}


def world(**changes: object) -> World:
    """Return a world whose only source has answered."""
    return replace(FakeDaemon().world, **changes)  # type: ignore[arg-type]


def test_a_controller_that_serves_its_agents_is_ready() -> None:
    """No check fails if the registry answers, the state is written and the source has answered."""
    assert failing(world()) == {}


def test_a_registry_that_does_not_answer_is_named() -> None:
    """The error of the registry is the message; before the first check, there is none yet."""
    away = RegistryHealth(reachable=False, loopback_only=None, error="Connection refused")

    assert failing(world(), replace(HEALTH, registry=away)) == {"registry": "Connection refused"}
    assert failing(world(), replace(HEALTH, registry=replace(away, error=None))) == {"registry": "not checked yet"}


def test_a_state_that_cannot_be_written_is_named() -> None:
    """The error of the store is the message."""
    assert failing(world(), replace(HEALTH, store_error="disk full")) == {"state": "disk full"}


def test_a_controller_that_stops_is_not_ready() -> None:
    """A load balancer takes a controller out as soon as a stop is requested."""
    assert failing(world(stage=Stage.STOPPING)) == {"running": "stopping"}


def test_a_source_without_a_first_answer_is_named() -> None:
    """Before the first complete answer of a source, its agents are not known; its error is shown if there is one."""
    sources = {"ci": SourceView("ci"), "office": SourceView("office", error="throttled")}

    expected = {"source ci": "no complete answer yet", "source office": "throttled"}
    assert failing(world(sources=sources)) == expected


def test_a_source_that_fails_later_does_not_matter() -> None:
    """A source that has answered once keeps its agents, so the controller stays ready."""
    assert failing(world(sources={"ci": SourceView("ci", ok=False, last_success=NOW, error="throttled")})) == {}


def test_a_database_that_does_not_answer_is_named() -> None:
    """In a cluster, the database is a check; without one there is no such check."""
    member = {"one": Member("one")}

    assert failing(world(cluster=Cluster("one", member, error="no connection"))) == {"database": "no connection"}
    names = [check.name for check in readiness(world(cluster=Cluster("one", member)), HEALTH)]
    assert "database" in names
    assert "database" not in [check.name for check in readiness(world(), HEALTH)]


def test_a_source_that_another_member_polls_is_that_members_matter() -> None:
    """A member of a cluster is ready without answers of the sources that other members poll."""
    leases = {"ci": Lease("two", 1), "office": Lease("one", 1)}
    sources = {"ci": SourceView("ci"), "office": SourceView("office")}
    cluster = Cluster("one", {"one": Member("one")}, sources=leases)

    assert failing(world(sources=sources, cluster=cluster)) == {"source office": "no complete answer yet"}
