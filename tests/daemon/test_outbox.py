"""What a member sends: in order, again if it could not be sent, and not without end while the database is away."""

from dataclasses import replace

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.cluster import Cluster, RemoteStatus
from tunnelmgr.core.cluster_messages import Discovered, Outgoing
from tunnelmgr.core.events import AgentEnded, AgentsDiscovered, DiscoveryFailed, FeedReported, RetryRequested
from tunnelmgr.core.ownership import Lease, Member
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.world import Record, World
from tunnelmgr.daemon.outbox import Outbox

ME = Member("me", rules="digest")
AGENT = Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",))
WORLD = World(
    records={AGENT.id: Record(AGENT, 0.0, 0.0)}, cluster=Cluster("me", {"me": ME}, agents={AGENT.id: Lease("me", 1)})
)
FAILED = Discovered("cloud", DiscoveryFailed("cloud", "throttled"), whole=False)
ENDED = Discovered("cloud", AgentEnded("cloud", AGENT.id, "terminated"), whole=False)
FEED = Discovered("cloud", FeedReported("cloud", None), whole=False)
WHOLE = Discovered("cloud", AgentsDiscovered("cloud", Snapshot(frozenset({AGENT}))), whole=True)
PART = Discovered("cloud", AgentsDiscovered("cloud", Snapshot(frozenset(), failures=("eu-2",))), whole=False)
GONE = Discovered("cloud", AgentsDiscovered("cloud", Snapshot(frozenset(), gone=frozenset({AGENT.id}))), whole=False)
OTHER = Discovered("office", DiscoveryFailed("office", "unreadable"), whole=False)


def take(outbox: Outbox, world: World = WORLD, *, stored: bool = False) -> Outgoing:
    """Return what is to be sent."""
    return outbox.take(ME, world, [], stored=stored)


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ([FAILED, FAILED, FAILED], [FAILED]),
        ([FAILED, PART, OTHER, WHOLE], [OTHER, WHOLE]),
        ([WHOLE, FAILED, FEED], [WHOLE, FAILED, FEED]),
        ([ENDED, FEED, GONE, WHOLE], [ENDED, GONE, WHOLE]),
        ([PART, FAILED, PART], [FAILED, PART]),
    ],
)
def test_what_no_longer_matters_does_not_wait(said: list[Discovered], sent: list[Discovered]) -> None:
    """A whole listing replaces what its source said before, another event those of its kind; ends are always sent."""
    outbox = Outbox()
    for one in said:
        outbox.discover(one)

    assert list(take(outbox).discovered) == sent
    assert list(take(outbox).discovered) == []


def test_what_could_not_be_sent_is_sent_first_the_next_time() -> None:
    """The order is kept, a newer wish of an operator counts, and all states are told again."""
    outbox = Outbox()
    first, second = RetryRequested(AGENT.id), RetryRequested(AGENT.id, 7)
    outbox.discover(ENDED)
    outbox.request(AGENT.id, first)
    outbox.drain("a", on=True)
    outbox.drain("b", on=True)
    taken = take(outbox)
    outbox.discover(WHOLE)
    outbox.request(AGENT.id, second)
    outbox.drain("a", on=False)
    outbox.put_back(taken)

    again = take(outbox)

    assert list(again.discovered) == [ENDED, WHOLE]
    assert list(again.requests) == [(AGENT.id, first), (AGENT.id, second)]
    assert again.drains == {"a": False, "b": True}
    assert again.statuses == {AGENT.id: RemoteStatus("awaiting-identity")}
    assert again.rules == "digest"


def test_a_state_is_not_told_again_once_it_was_sent() -> None:
    """Only what has changed since is told."""
    outbox = Outbox()
    outbox.sent(take(outbox), WORLD)

    assert take(outbox).statuses == {}
    left = replace(WORLD.records[AGENT.id], present=False)
    assert take(outbox, WORLD.with_record(left)).statuses == {AGENT.id: RemoteStatus("down")}


def test_a_request_of_another_member_is_done_once_its_effect_is_stored() -> None:
    """Until then it stays in the database, in case that this member dies."""
    outbox = Outbox(acting={1, 2})

    assert take(outbox).done == ()
    done = take(outbox, stored=True)
    assert set(done.done) == {1, 2}
    outbox.acting.add(3)
    outbox.sent(done, WORLD)
    assert outbox.acting == {3}
