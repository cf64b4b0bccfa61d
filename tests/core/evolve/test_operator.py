"""What operators request, and what is forgotten with time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import (
    ReleaseRequested,
    RetentionExpired,
    RetryRequested,
)
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import History


def test_a_retry_makes_the_next_try_due_now(history: History) -> None:
    """A requested retry is due at once, resets the failures, and is in the history with the user's id."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.SLOW)

    history.receive(RetryRequested(agent.id, uid=1000))

    assert (history.status(agent).retry_at, history.status(agent).failures) == (None, 0)
    assert (history.record(agent).history[-1].step, history.record(agent).history[-1].uid) == ("retry", 1000)


def test_a_retry_of_what_is_under_way_changes_nothing(history: History) -> None:
    """A retry of an agent that is being dialled changes nothing."""
    agent = history.agent()
    history.dialling(agent)
    before = history.world

    history.receive(RetryRequested(agent.id))

    assert history.world is before


def test_a_release_ends_a_quarantine_and_forgets_the_key(history: History) -> None:
    """A release ends a quarantine, drops the evidence and its key, and makes the agent await its identity."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.NEVER)

    history.receive(ReleaseRequested(agent.id, "rebuilt by hand", uid=1000))

    record = history.record(agent)
    assert (record.quarantine, record.trust, history.spec(agent)) == (None, None, None)
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.world.key_holders == {}
    last = record.history[-1]
    assert (last.step, last.detail, last.uid) == ("released", "rebuilt by hand", 1000)


def test_a_release_of_an_agent_that_is_free_changes_nothing(history: History) -> None:
    """A release of an agent that is not quarantined keeps its evidence."""
    agent = history.agent()
    history.believed(agent)
    before = history.world

    history.receive(ReleaseRequested(agent.id, "none"))

    assert history.world is before


def test_a_quarantine_outlives_absence(history: History) -> None:
    """An agent that leaves and returns in a new incarnation is still quarantined."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.NEVER)
    history.listed(gone=frozenset({agent.id}))

    history.listed(replace(agent, incarnation="2"))

    assert history.status(agent).phase is Phase.QUARANTINED


def test_agents_that_left_long_ago_are_forgotten(history: History) -> None:
    """An agent that left before the given time is removed from records and statuses."""
    agent, other = history.agent(), history.agent("other")
    history.listed(agent, other)
    history.listed(other, gone=frozenset({agent.id}))

    history.receive(RetentionExpired(history.now + 1))

    assert history.world.records.keys() == {other.id}
    assert history.world.tunnels.keys() == {other.id}


def test_agents_that_left_recently_are_remembered(history: History) -> None:
    """An agent that left after the given time keeps its record, so that `show` has its history."""
    agent = history.agent()
    history.listed(agent)
    history.listed(gone=frozenset({agent.id}))

    history.receive(RetentionExpired(history.now))

    assert agent.id in history.world.records


def test_an_agent_with_a_worker_is_not_forgotten(history: History) -> None:
    """An agent that left is not forgotten until its worker has ended."""
    agent = history.agent()
    history.up(agent)
    history.listed(gone=frozenset({agent.id}))

    history.receive(RetentionExpired(history.now + 1))

    assert agent.id in history.world.records
