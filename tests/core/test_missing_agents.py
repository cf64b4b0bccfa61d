"""A listing that succeeds and lacks agents: which are requested by id, and how long the others stay."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.missing_agents import LONGEST_GRACE, grace_period, missing_agents, with_answer
from tunnelmgr.core.snapshot import Snapshot

if TYPE_CHECKING:
    from tests.core.conftest import History
    from tunnelmgr.core.agent import Agent


def fleet(history: History, count: int) -> list[Agent]:
    """Let the cloud list this many agents."""
    agents = [history.agent(f"agent-{number}") for number in range(count)]
    history.listed(*agents)
    return agents


def present(history: History) -> int:
    """Return how many agents are present."""
    return sum(record.present for record in history.world.records.values())


def test_two_empty_listings_in_a_row_remove_no_agent_at_once(history: History) -> None:
    """Two empty listings within a second remove no agent, and the source says how many stay and for how long."""
    fleet(history, 300)

    for _ in range(2):
        history.listed()
        history.now += 0.5

    view = history.world.sources["cloud"]
    assert present(history) == 300
    assert (view.ok, view.missing) == (False, 300)
    assert view.error == ("its listing lacks 300 of 300 agents: 0 were found by their ids, 300 stay for up to 45 s")


def test_a_fleet_that_is_scaled_to_zero_without_a_report_leaves_within_a_minute(history: History) -> None:
    """With polls ten seconds apart, a fleet that disappeared from the listing leaves within a minute."""
    fleet(history, 300)
    began = history.now

    while present(history):
        history.now += 10
        history.listed()

    assert history.now - began <= 60
    history.listed()
    assert (history.world.sources["cloud"].ok, history.world.sources["cloud"].missing) == (True, 0)


def test_agents_that_a_listing_has_again_are_counted_from_the_beginning(history: History) -> None:
    """After a listing that has an agent again, a later absence is counted from its own beginning."""
    agents = fleet(history, 10)
    history.listed()
    history.now += 40
    history.listed(*agents)
    history.now += 40
    history.listed()
    history.now += 10

    history.listed()

    assert present(history) == 10


@pytest.mark.parametrize(("lacks", "seconds"), [(1, 0.0), (75, 0.8), (150, 5.6), (270, 33.0), (300, 45.0)])
def test_the_wait_grows_with_the_share_that_is_missing(lacks: int, seconds: float) -> None:
    """One agent of many leaves with the second listing, a whole fleet only after most of a minute."""
    assert grace_period(lacks, 300) == pytest.approx(seconds, abs=0.3)


@settings(derandomize=True, database=None)
@given(present=st.integers(1, 10_000))
def test_the_wait_is_never_longer_than_the_longest(present: int) -> None:
    """The wait never exceeds the longest, and never shrinks if more agents are missing."""
    waits = [grace_period(lacks, present) for lacks in range(1, present + 1, max(1, present // 50))]

    assert all(shorter <= longer for shorter, longer in pairwise(waits))
    assert max(waits) <= LONGEST_GRACE


def test_agents_that_the_listing_explains_are_not_requested(history: History) -> None:
    """Ended agents are not requested by id, nor any agent of a partial answer or of an authoritative list."""
    here, ended, outside, lacking = agents = fleet(history, 4)
    listing = Snapshot(frozenset({here}), gone=frozenset({ended.id}), outside=frozenset({outside.id}))

    assert missing_agents(history.world, "cloud", listing) == (lacking,)
    assert missing_agents(history.world, "file", listing) == ()
    assert missing_agents(history.world, "cloud", Snapshot(frozenset(), failures=("throttled",))) == ()
    assert missing_agents(history.world, "cloud", Snapshot(frozenset(), absence_is_proof=True)) == ()
    assert set(missing_agents(history.world, "cloud", Snapshot(frozenset()))) == set(agents)


def test_the_answer_to_requests_by_id_completes_the_listing(history: History) -> None:
    """Found, ended and outside agents are merged separately, and a failure makes the listing a partial answer."""
    listed, found, ended, outside = (history.agent(name) for name in ("listed", "found", "ended", "outside"))
    answer = Snapshot(
        frozenset({found}), frozenset({ended.id}), failures=("b: throttled",), outside=frozenset({outside.id})
    )

    assert with_answer(Snapshot(frozenset({listed}), failures=("a",)), answer) == Snapshot(
        frozenset({listed, found}),
        frozenset({ended.id}),
        failures=("a", "b: throttled"),
        outside=frozenset({outside.id}),
        unlisted=frozenset({found.id}),
    )


def test_agents_that_were_found_by_their_ids_stay_and_the_source_is_shown_as_failing(history: History) -> None:
    """Agents found by their ids stay, and the source is not ok while its listing lacks most of its agents."""
    agents = fleet(history, 4)

    for _ in range(3):
        history.now += 600
        history.listed(*agents, unlisted=frozenset(agent.id for agent in agents[:3]))

    view = history.world.sources["cloud"]
    assert present(history) == 4
    assert (view.ok, view.missing) == (False, 3)
    assert view.error is not None
    assert "lacks 3 of 4 agents: 3 were found by their ids, 0 stay" in view.error


def test_agents_that_no_longer_match_the_source_leave_with_the_second_listing(history: History) -> None:
    """Agents that exist with other labels leave with the second listing, no matter how many they are."""
    agents = fleet(history, 4)
    outside = frozenset(agent.id for agent in agents)

    history.listed(outside=outside)
    assert present(history) == 4
    history.listed(outside=outside)

    assert present(history) == 0


def test_an_agent_that_has_ended_leaves_at_once_while_most_of_the_fleet_is_missing(history: History) -> None:
    """An agent that is reported as ended leaves at once, even if most of the fleet is missing."""
    agents = fleet(history, 4)

    history.listed(gone=frozenset({agents[0].id}))

    assert present(history) == 3
    assert not history.record(agents[0]).present


def test_a_continued_absence_causes_no_further_write(history: History) -> None:
    """Further listings that lack the same agents change no record."""
    fleet(history, 4)
    history.listed()
    history.listed()
    before = dict(history.world.records)

    history.listed()

    assert all(history.world.records[id_] is record for id_, record in before.items())
