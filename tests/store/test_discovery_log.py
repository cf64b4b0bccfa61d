"""What sources have said, as members of a cluster tell each other: in order, once, and no longer than needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.store.records import AGENT
from tests.store.test_cluster_database import join, wait_for_sessions
from tunnelmgr.core.cluster_messages import Discovered, Outgoing
from tunnelmgr.core.events import AgentsDiscovered
from tunnelmgr.core.ownership import LeaseChange, Step
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.store.discovery_log import KEPT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnelmgr.store.cluster_database import ClusterDatabase

__all__ = ["join"]

pytestmark = pytest.mark.acceptance


def test_what_a_source_said_reaches_every_other_member_in_order(join: Callable[[str], ClusterDatabase]) -> None:
    """Each event comes once, also for a member that joins later: from the last whole listing on."""
    one, two = join("one"), join("two")
    one.tick(Outgoing(changes=(LeaseChange("source", "cloud", Step.CLAIM, "one", 0),)))
    events = [AgentsDiscovered("cloud", Snapshot(frozenset({AGENT}), failures=(str(number),))) for number in range(3)]
    for event in events:
        one.tick(Outgoing(discovered=(Discovered("cloud", event, whole=True),)))

    received = two.tick(Outgoing()).discovered

    assert list(received) == events
    assert two.tick(Outgoing()).discovered == ()
    assert one.tick(Outgoing()).discovered == ()
    assert join("late").tick(Outgoing()).discovered == (events[-1],)


def test_a_listing_that_says_the_same_again_is_stored_once(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """Each repetition reaches the other members as the listing itself; only the last rows are kept."""
    one, two = join("one"), join("two")
    one.tick(Outgoing(changes=(LeaseChange("source", "cloud", Step.CLAIM, "one", 0),)))
    listing = AgentsDiscovered("cloud", Snapshot(frozenset({AGENT})))
    said = Outgoing(discovered=(Discovered("cloud", listing, whole=True),))
    for _ in range(3):
        one.tick(said)

    assert two.tick(Outgoing()).discovered == (listing,) * 3
    one.tick(said)
    assert two.tick(Outgoing()).discovered == (listing,)
    late = join("late")
    assert late.tick(Outgoing()).discovered == (listing,) * 4
    with psycopg.connect(url, autocommit=True) as db:
        assert db.execute("SELECT count(*) FROM discovery WHERE event <> ''").fetchone() == (1,)
        db.execute("UPDATE discovery SET at = now() - make_interval(secs => %s)", (KEPT_SECONDS + 1,))
        one.tick(said)
        assert db.execute("SELECT count(*) FROM discovery").fetchone() == (2,)
    assert late.tick(Outgoing()).discovered == (listing,)


def test_a_repetition_is_read_also_by_a_member_that_has_not_kept_the_listing(
    join: Callable[[str], ClusterDatabase], url: str
) -> None:
    """The listing is looked up by its number; one that has been removed meanwhile is left out."""
    one, two = join("one"), join("two")
    one.tick(Outgoing(changes=(LeaseChange("source", "cloud", Step.CLAIM, "one", 0),)))
    listing = AgentsDiscovered("cloud", Snapshot(frozenset({AGENT})))
    said = Outgoing(discovered=(Discovered("cloud", listing, whole=True),))
    one.tick(said)
    two.tick(Outgoing())
    with psycopg.connect(url, autocommit=True) as db:
        two.close()
        db.execute("UPDATE discovery SET whole = false")  # as one that is older than what the member reads
        one.tick(said)
        assert two.tick(Outgoing()).discovered == (listing,) * 2
        two.close()
        db.execute("DELETE FROM discovery WHERE repeats IS NULL")
        one.tick(said)
        assert two.tick(Outgoing()).discovered == ()


def test_a_restarted_member_reads_what_it_has_said_before(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """Its new process knows no listing yet, and must not wait for the next poll."""
    one = join("one")
    one.tick(Outgoing(changes=(LeaseChange("source", "cloud", Step.CLAIM, "one", 0),)))
    listing = AgentsDiscovered("cloud", Snapshot(frozenset({AGENT})))
    one.tick(Outgoing(discovered=(Discovered("cloud", listing, whole=True),)))
    one.close()
    wait_for_sessions(url, 0)

    assert join("one").tick(Outgoing()).discovered == (listing,)


def test_what_a_member_says_of_a_source_that_it_has_lost_is_dropped(join: Callable[[str], ClusterDatabase]) -> None:
    """A member that comes back after a partition must not overrule the member that has polled since."""
    one, two = join("one"), join("two")
    one.tick(Outgoing(changes=(LeaseChange("source", "cloud", Step.CLAIM, "one", 0),)))
    said = Discovered("cloud", AgentsDiscovered("cloud", Snapshot(frozenset({AGENT}))), whole=True)

    two.tick(Outgoing(discovered=(said,)))

    assert one.tick(Outgoing()).discovered == ()
