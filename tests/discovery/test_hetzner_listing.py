"""Listings of Hetzner Cloud in pages, while servers come and go: no agent is lost, and none stays after its end."""

from collections.abc import Callable

import pytest

from lab.hetzner import HetznerCloud
from tests.discovery.hetzner_project import Make, Polled, gone, ids, launch_many
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.errors import DiscoveryError


def test_120_servers_come_in_three_pages(cloud: HetznerCloud, make: Make) -> None:
    """Pages have at most 50 servers, sorted by id, so that new servers come at the end."""
    launched = launch_many(cloud, 120)

    snapshot = make().discover()

    assert ids(snapshot) == launched
    assert snapshot.failures == ()
    assert [request.partition("?")[2] for request in cloud.requests] == [
        f"sort=id%3Aasc&per_page=50&page={page}" for page in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", {"a", "b", "c"}),
        ("role=ci", {"a", "b"}),
        ("role==ci,size=big", {"a"}),
        ("role!=ci", {"c"}),
        ("size", {"a", "c"}),
        ("!size", {"b"}),
        ("size in (big,huge)", {"a", "c"}),
        ("role notin (ci)", {"c"}),
    ],
)
def test_the_label_selector_selects(cloud: HetznerCloud, make: Make, selector: str, expected: set[str]) -> None:
    """Hetzner evaluates the selector; without one, every server of the project is an agent."""
    cloud.launch("a", "192.0.2.1", {"role": "ci", "size": "big"})
    cloud.launch("b", "192.0.2.2", {"role": "ci"})
    cloud.launch("c", "192.0.2.3", {"size": "huge"})

    assert {agent.name for agent in make(label_selector=selector).discover().agents} == expected


def test_an_invalid_label_selector_is_named(make: Make) -> None:
    """The error has Hetzner's reason and names label_selector."""
    with pytest.raises(DiscoveryError, match=r"400, invalid_input, invalid label selector.*check label_selector"):
        make(label_selector="role=ci=x").discover()


def test_a_gap_between_two_pages_is_noticed_and_the_listing_repeated(cloud: HetznerCloud, make: Make) -> None:
    """A server deleted between two pages moves later ones up, so that one of them is on neither page."""
    launched = launch_many(cloud, 120)
    at_second_page(cloud, lambda: cloud.delete(launched[3]))

    snapshot = make().discover()

    assert ids(snapshot) == [id_ for id_ in launched if id_ != launched[3]]
    assert snapshot.failures == ()
    assert len(cloud.requests) == 6


def test_a_duplicate_on_two_pages_is_one_agent(cloud: HetznerCloud, make: Make) -> None:
    """A server that matches only now moves later ones down, so that one of them is on two pages."""
    old = cloud.launch("old", "192.0.2.9")
    launched = launch_many(cloud, 60)
    at_second_page(cloud, lambda: cloud.relabel(old, {"role": "ci"}))

    snapshot = make(label_selector="role=ci").discover()

    assert ids(snapshot) == [old, *launched]
    assert snapshot.failures == ()


def test_a_gap_that_the_totals_hide_loses_no_agent(cloud: HetznerCloud, make: Make) -> None:
    """If one server goes and one comes, the totals agree, and the server that was missed is found by its id."""
    launched = launch_many(cloud, 120)
    source = Polled(make())
    source.poll()

    def swap() -> None:
        cloud.delete(launched[3])
        launched.append(cloud.launch("new", "192.0.2.9", {"role": "ci"}))

    at_second_page(cloud, swap)
    snapshot = source.poll()

    assert ids(snapshot) == launched  # the first page had the one that went
    assert snapshot.failures == ()
    assert [request for request in cloud.requests if "?" not in request] == [f"GET /v1/servers/{launched[50]}"]
    assert gone(source.poll()) == [launched[3]]


def test_a_listing_that_keeps_changing_is_reported(cloud: HetznerCloud, make: Make) -> None:
    """After three attempts, the servers that were seen count, and the snapshot is incomplete."""
    launched = launch_many(cloud, 120)
    left = iter(launched)
    cloud.before_page(lambda page: cloud.delete(next(left)) if page == 2 else None)

    snapshot = make().discover()

    assert len(cloud.requests) == 9
    assert snapshot.failures == ("servers came and went during each of 3 listings, so none is complete",)
    assert {launched[10], launched[119]} <= set(ids(snapshot))
    assert snapshot.gone == frozenset()


def test_a_failure_on_a_later_page_keeps_the_earlier_ones(cloud: HetznerCloud, make: Make) -> None:
    """The servers of earlier pages count, and the snapshot is incomplete, so that no agent is missed."""
    launched = launch_many(cloud, 60)
    source = Polled(make())
    source.poll()
    cloud.delete(launched[59])
    cloud.fault("list", status=500, later_pages=True)

    partly, wholly = source.poll(), source.poll()

    assert ids(partly) == launched[:50]
    assert (gone(partly), partly.failures) == (
        [],
        ("500, a fault at Hetzner; see https://status.hetzner.com",),
    )
    assert (ids(wholly), gone(wholly)) == (launched[:59], [launched[59]])


def at_second_page(cloud: HetznerCloud, change: Callable[[], object]) -> None:
    """Change the servers once, just before the second page is made."""

    def once(page: int) -> None:
        if page == 2:
            cloud.before_page(None)
            change()

    cloud.before_page(once)


# --- those that are missed ----------------------------------------------------------------------------------------


def test_a_deleted_server_is_gone_at_once(cloud: HetznerCloud, make: Make) -> None:
    """The API's 404 is proof that a server is gone, and it is requested once."""
    stays, leaves = launch_many(cloud, 2)
    source = Polled(make())
    source.poll()
    cloud.delete(leaves)

    snapshots = [source.poll(), source.poll()]

    assert [ids(snapshot) for snapshot in snapshots] == [[stays], [stays]]
    assert [gone(snapshot) for snapshot in snapshots] == [[leaves], []]
    assert cloud.requests.count(f"GET /v1/servers/{leaves}") == 1


def test_a_server_without_its_label_is_outside_and_leaves_with_the_second_listing(
    cloud: HetznerCloud, make: Make
) -> None:
    """A server with other labels exists but is outside of the source."""
    id_ = cloud.launch("ci-1", "192.0.2.7", {"role": "ci"})
    source = Polled(make(label_selector="role=ci"))
    source.poll()
    cloud.relabel(id_, {})

    first = source.poll()
    assert (first.gone, first.outside) == (frozenset(), {f"hetzner:{source.source.config.name}:{id_}"})
    assert source.present() == 1
    source.poll()
    assert source.present() == 0


def test_servers_that_an_empty_listing_lacks_are_found_by_their_ids(cloud: HetznerCloud, make: Make) -> None:
    """While Hetzner returns an empty listing, no agent leaves, and the source is not ok."""
    launch_many(cloud, 30)
    source = Polled(make())
    source.poll()
    cloud.fault("list", empty=True, forever=True)

    for _ in range(5):
        source.now += 60
        source.poll()
        view = source.world.sources[source.source.config.name]
        assert (source.present(), view.ok, view.missing) == (30, False, 30)
    cloud.clear_faults()
    source.poll()

    view = source.world.sources[source.source.config.name]
    assert (view.ok, view.missing) == (True, 0)


def test_a_server_outside_of_a_new_selector_is_not_kept(cloud: HetznerCloud, make: Make) -> None:
    """After a reload with another selector, nothing is known of a server that it does not list."""
    cloud.launch("ci-1", "192.0.2.7", {"role": "ci"})
    agents = list(make(label_selector="role=ci").discover().agents)

    other = make(label_selector="role=builder")
    every = make()

    assert other.find_by_id(agents) == Snapshot(frozenset())
    assert every.find_by_id(agents) == Snapshot(frozenset(agents))


def test_fifty_missing_servers_are_requested_in_a_poll_and_each_in_turn(cloud: HetznerCloud, make: Make) -> None:
    """The budget is shared, so a fleet that is scaled to zero is gone within a few polls."""
    launched = launch_many(cloud, 120)
    source = Polled(make())
    source.poll()
    cloud.fault("list", empty=True, times=3)
    found = [ids(source.poll()) for _ in range(3)]
    for id_ in launched:
        cloud.delete(id_)

    assert [len(snapshot) for snapshot in found] == [50, 50, 50]
    assert set().union(*found) == set(launched)
    assert [len(source.poll().gone) for _ in range(4)] == [50, 50, 20, 0]


def test_a_failed_request_by_id_is_not_proof_and_is_repeated(cloud: HetznerCloud, make: Make) -> None:
    """While the state of a missing server is unknown, the snapshot is incomplete."""
    (id_,) = launch_many(cloud, 1)
    source = Polled(make())
    source.poll()
    cloud.delete(id_)
    cloud.fault("get", status=503)

    first, second = source.poll(), source.poll()

    assert first.failures == ("503, a fault at Hetzner; see https://status.hetzner.com",)
    assert (gone(first), gone(second)) == ([], [id_])


def test_a_404_that_is_not_the_apis_own_is_not_proof(cloud: HetznerCloud, make: Make) -> None:
    """A proxy can answer 404; only the API's error `not_found` means that a server is gone."""
    (id_,) = launch_many(cloud, 1)
    source = Polled(make())
    source.poll()
    cloud.delete(id_)
    cloud.fault("get", status=404, code="no_route")

    snapshot = source.poll()

    assert gone(snapshot) == []
    assert "404, no_route" in snapshot.failures[0]
