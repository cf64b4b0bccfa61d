"""Members of a cluster in a real database: who is alive, who holds what, and what each learns of the others."""

from __future__ import annotations

import queue
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest

from tests.store.records import AGENT, RECORD
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import RemoteStatus
from tunnelmgr.core.cluster_messages import Outgoing
from tunnelmgr.core.events import ReleaseRequested
from tunnelmgr.core.ownership import LEASE_SECONDS, NOBODY, Lease, LeaseChange, Member, Step
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.seed import Seed
from tunnelmgr.errors import StoreError
from tunnelmgr.store import cluster_database
from tunnelmgr.store.cluster_database import QUIET_SECONDS, RELEASED_SECONDS, ClusterDatabase
from tunnelmgr.store.database import APPLICATION
from tunnelmgr.store.event_codec import decode
from tunnelmgr.store.notifications import Notifications
from tunnelmgr.store.postgres import PostgresStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lab.postgres import Postgres

pytestmark = pytest.mark.acceptance

Join = "Callable[[str], ClusterDatabase]"


@pytest.fixture
def join(url: str) -> Iterator[Callable[[str], ClusterDatabase]]:
    """Let a member join; all of them are closed at the end."""
    with ExitStack() as stack:

        def join(name: str) -> ClusterDatabase:
            member = stack.enter_context(
                closing(ClusterDatabase(url, Member(name, zone="eu-1", version="1"), grace=0.0))
            )
            member.join()
            return member

        yield join


def claim(member: str, term: int = 0, step: Step = Step.CLAIM, successor: str = "") -> Outgoing:
    """Return the request for a change of the agent's lease."""
    return Outgoing(changes=(LeaseChange("agent", AGENT.id, step, member, term, successor),))


def age(url: str, name: str, seconds: float) -> None:
    """Let a member's last heartbeat be older."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "UPDATE member SET heartbeat = heartbeat - make_interval(secs => %s) WHERE name = %s", (seconds, name)
        )


def test_each_member_sees_the_others(join: Callable[[str], ClusterDatabase]) -> None:
    """A member's name, zone and version reach the others with its first heartbeat."""
    one, two = join("one"), join("two")
    one.tick(Outgoing())

    members = two.tick(Outgoing(draining=True, rules="abc")).members

    assert {name: member.alive for name, member in members.items()} == {"one": True, "two": True}
    assert (members["one"].zone, members["two"].draining, members["two"].rules) == ("eu-1", True, "abc")


def test_a_second_process_of_one_name_is_refused_while_the_first_lives(
    join: Callable[[str], ClusterDatabase], url: str
) -> None:
    """It may take the name once the first has ended; the terms of the first are then invalid."""
    first = join("one")
    first.tick(claim("one"))
    with pytest.raises(StoreError, match="a controller with the name 'one' is running"):
        join("one")
    first.close()
    wait_for_sessions(url, 0)

    second = join("one")

    assert second.tick(Outgoing()).agents == {AGENT.id: Lease("one", 2)}
    with pytest.raises(StoreError, match="another controller has taken the name 'one'"):
        first.tick(Outgoing())


def test_a_killed_member_is_dead_soon_and_a_silent_one_after_its_lease(
    join: Callable[[str], ClusterDatabase], url: str
) -> None:
    """Without its session a member is dead after a short silence; with it, after `LEASE_SECONDS`."""
    silent, killed, other = join("silent"), join("killed"), join("other")
    killed.close()
    wait_for_sessions(url, 2)
    age(url, "killed", QUIET_SECONDS)
    age(url, "silent", QUIET_SECONDS)

    living = {name for name, member in other.tick(Outgoing()).members.items() if member.alive}
    age(url, "silent", LEASE_SECONDS)
    later = {name for name, member in other.tick(Outgoing()).members.items() if member.alive}

    assert (living, later) == ({"silent", "other"}, {"other"})
    assert silent.tick(Outgoing()).members["silent"].alive


def test_a_member_that_connects_again_takes_nobody_for_dead(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """After a restart of the database every member has to come back, and the first one back must not claim all.

    One that has come back is dead like any other if it falls silent again.
    """
    silent = join("silent")
    with closing(ClusterDatabase(url, Member("back"), grace=60.0)) as back:
        back.join()
        back.close()
        age(url, "silent", 10 * LEASE_SECONDS)
        before = back.tick(Outgoing()).members["silent"].alive
        silent.tick(Outgoing())
        silent.close()
        wait_for_sessions(url, 1)
        assert before
        wait_until_dead(back, "silent")


def test_a_member_whose_earlier_session_ends_late_locks_its_new_one_later(
    join: Callable[[str], ClusterDatabase], url: str
) -> None:
    """While the server still has the session that was cut off, the lock is tried again in each turn."""
    one, other = join("one"), join("other")
    with psycopg.connect(url, autocommit=True) as db:
        row = db.execute("SELECT session FROM member WHERE name = 'one'").fetchone()
        assert row is not None
        one.close()
        wait_for_sessions(url, 1)
        db.execute("SELECT pg_advisory_lock(%s, %s)", (APPLICATION, row[0]))  # as the earlier session would
        one.tick(Outgoing())
        db.execute("SELECT pg_advisory_unlock_all()")
        one.tick(Outgoing())
    age(url, "one", QUIET_SECONDS)

    assert other.tick(Outgoing()).members["one"].alive


def test_a_lease_has_one_holder_and_passes_on_by_offer(join: Callable[[str], ClusterDatabase]) -> None:
    """The second claim is refused; a handover takes an offer, readiness and the taking, and a new term."""
    one, two = join("one"), join("two")

    assert one.tick(claim("one")).accepted == 1
    assert two.tick(claim("two")).accepted == 0
    one.tick(claim("one", 1, Step.OFFER, "two"))
    two.tick(claim("two", 1, Step.READY))
    assert one.tick(Outgoing()).agents[AGENT.id] == Lease("one", 1, "two", ready=True)
    two.tick(claim("two", 1, Step.TAKE))

    assert one.tick(Outgoing()).agents[AGENT.id] == Lease("two", 2, previous="one")


def test_a_write_under_an_earlier_term_is_dropped(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """What a member writes about an agent that another has taken over does not reach the database."""
    one = join("one")
    one.tick(claim("one"))
    with closing(PostgresStore(url, "one")) as store:
        store.write(Changes((RECORD,), terms={AGENT.id: 1}))
        assert store.load().records == {AGENT.id: RECORD}
        two = join("two")
        one.tick(claim("one", 1, Step.OFFER, "two"))
        two.tick(claim("two", 1, Step.TAKE))

        late = store.write(Changes(forgotten=(AGENT.id,), terms={AGENT.id: 1}))
        foreign = store.write(Changes((RECORD,), terms={AGENT.id: 2}))

        assert (late, foreign) == ({AGENT.id}, {AGENT.id})
        assert store.load().records == {AGENT.id: RECORD}


def test_a_seed_serves_the_agent_that_was_stored_first(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """What a member writes about an agent whose seed has another holder is dropped: the seed is not used twice."""
    one, two = join("one"), join("two")
    other = replace(RECORD, agent=replace(AGENT, id=AgentId("ec2:i-0b")))
    one.tick(claim("one"))
    two.tick(Outgoing(changes=(LeaseChange("agent", other.agent.id, Step.CLAIM, "two", 0),)))
    seed = Seed("seed-1", "ssh-ed25519 AAAA", 9e9)
    with closing(PostgresStore(url, "one")) as first, closing(PostgresStore(url, "two")) as second:
        taken = replace(seed, holder=AGENT.id, incarnation="1")
        assert not first.write(Changes((RECORD,), seeds=(taken,), terms={AGENT.id: 1}))

        dropped = second.write(
            Changes((other,), seeds=(replace(seed, holder=other.agent.id),), terms={other.agent.id: 1})
        )

        assert dropped == {other.agent.id}
        assert (second.load().records, second.load().seeds) == ({AGENT.id: RECORD}, {"seed-1": taken})


def test_a_released_lease_is_nobodys_for_all_members(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """The others learn of it; it may be claimed under the next term, and is removed from the database after a while."""
    one, two = join("one"), join("two")
    one.tick(claim("one"))
    two.tick(Outgoing())
    one.tick(claim("one", 1, Step.RELEASE))

    assert two.tick(Outgoing()).agents == {AGENT.id: Lease(NOBODY, 1)}
    assert two.tick(claim("two")).agents == {AGENT.id: Lease("two", 2)}
    two.tick(claim("two", 2, Step.RELEASE))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE lease SET changed = now() - make_interval(secs => %s)", (RELEASED_SECONDS + 1,))
        two.tick(Outgoing(changes=(LeaseChange("source", "cloud", Step.CLAIM, "two", 0),)))
        two.tick(Outgoing(changes=(LeaseChange("source", "cloud", Step.RELEASE, "two", 1),)))
        assert db.execute("SELECT kind FROM lease").fetchall() == [("source",)]


def test_a_member_that_was_frozen_for_long_reads_everything_again(
    join: Callable[[str], ClusterDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was released and removed meanwhile is not in its news, so that it must forget its view."""
    one = join("one")
    one.tick(claim("one"))
    assert (one.tick(Outgoing()).complete, one.tick(Outgoing()).agents) == (False, {})

    monkeypatch.setattr(cluster_database, "UP_TO_DATE_SECONDS", 0.0)
    news = one.tick(Outgoing())

    assert (news.complete, news.agents) == (True, {AGENT.id: Lease("one", 1)})


def test_records_statuses_and_seeds_reach_the_other_member(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """What a holder writes is in the next news of every member, once."""
    one, two = join("one"), join("two")
    one.tick(claim("one"))
    two.tick(Outgoing())
    with closing(PostgresStore(url, "one")) as store:
        store.write(Changes((RECORD,), terms={AGENT.id: 1}))
    one.tick(Outgoing(statuses={AGENT.id: RemoteStatus("up")}))

    news, later = two.tick(Outgoing()), two.tick(Outgoing())

    assert news.records == (RECORD,)
    assert news.statuses == {AGENT.id: RemoteStatus("up")}
    assert (later.records, later.statuses) == ((), {})


def test_a_request_reaches_the_holder_until_it_has_acted(join: Callable[[str], ClusterDatabase]) -> None:
    """A release at one member is in the holder's news, again and again, until the holder says that it is done."""
    one, two = join("one"), join("two")
    one.tick(claim("one"))
    event = ReleaseRequested(AGENT.id, "rebuilt", 0)
    two.tick(Outgoing(requests=((AGENT.id, event),)))

    ((number, received),) = one.tick(Outgoing()).requests

    assert received == event
    assert two.tick(Outgoing()).requests == ()
    assert len(one.tick(Outgoing()).requests) == 1
    assert one.tick(Outgoing(done=(number,))).requests == ()


def test_a_change_notifies_the_other_members(join: Callable[[str], ClusterDatabase], url: str) -> None:
    """A member is woken by what others change, and not by its own changes."""
    one, own, other = join("one"), Notifications(url, "one"), Notifications(url, "two")
    woken: queue.SimpleQueue[str] = queue.SimpleQueue()
    own.start(lambda: woken.put("own"))
    other.start(lambda: woken.put("other"))
    try:
        wait_for_listeners(url, 2)
        one.tick(claim("one"))
        assert woken.get(timeout=10) == "other"
        assert woken.empty()
    finally:
        own.stop()
        other.stop()


def wait_until_dead(member: ClusterDatabase, name: str) -> None:
    """Wait until a member takes another one for dead."""
    deadline = time.monotonic() + 10
    while member.tick(Outgoing()).members[name].alive:
        assert time.monotonic() < deadline, f"{name} is alive"
        time.sleep(0.05)


def wait_for_sessions(url: str, count: int) -> None:
    """Wait until this many members have a session."""
    wait_for(url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", count)


def wait_for_listeners(url: str, count: int) -> None:
    """Wait until this many connections listen."""
    wait_for(url, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'state' AND query LIKE 'LISTEN%'", count)


def wait_for(url: str, query: LiteralString, count: int) -> None:
    """Wait until a query returns a number."""
    deadline = time.monotonic() + 10
    with psycopg.connect(url, autocommit=True) as db:
        while db.execute(query).fetchone() != (count,):
            assert time.monotonic() < deadline, query
            time.sleep(0.02)


def test_a_member_that_has_left_is_gone_at_once(join: Callable[[str], ClusterDatabase]) -> None:
    """Its leases can be claimed without waiting for its heartbeat to grow old."""
    one, two = join("one"), join("two")
    one.tick(claim("one"))
    one.leave()

    assert two.tick(claim("two", 1)).accepted == 1


def test_a_server_that_restarts_costs_a_tick(join: Callable[[str], ClusterDatabase], server: Postgres) -> None:
    """The member continues with a new session, and is still alive for the others."""
    one, two = join("one"), join("two")
    server.stop()
    with pytest.raises(StoreError):
        one.tick(Outgoing())
    server.start()
    with pytest.raises(StoreError):
        two.tick(Outgoing())

    one.tick(Outgoing())

    assert two.tick(Outgoing()).members["one"].alive


def test_an_event_of_a_newer_version_is_left_out() -> None:
    """A cluster that is being upgraded continues to work."""
    assert decode('{"kind": "Unknown", "event": {}}') is None
    assert decode("[]") is None


def test_no_statement_is_sent_in_a_pipeline(url: str, join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends a frozen client's transaction, and its locks, only if that has sent its statements one by one."""

    def refuse(_pipeline: object) -> object:
        raise AssertionError("a pipeline was started")

    monkeypatch.setattr(psycopg.Pipeline, "__enter__", refuse)
    member = join("one")
    wanted = [LeaseChange("agent", id_, Step.CLAIM, "one", 0) for id_ in ("ec2:i-1", "ec2:i-2", AGENT.id)]
    up = RemoteStatus("up")

    member.tick(Outgoing(changes=wanted))
    incoming = member.tick(Outgoing(statuses={AgentId("ec2:i-1"): up, AgentId("ec2:i-2"): up}))
    with closing(PostgresStore(url, "one")) as store:
        other = replace(RECORD, agent=replace(AGENT, id=AgentId("ec2:i-1")))
        store.write(Changes((RECORD, other), terms={AGENT.id: 1, other.agent.id: 1}))

    assert incoming.statuses[AgentId("ec2:i-1")] == incoming.statuses[AgentId("ec2:i-2")] == up
