"""Which agents exist: snapshots, a source's event feed, and the configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import (
    AgentEnded,
    DiscoveryFailed,
    FeedReported,
    Reconfigured,
)
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase

if TYPE_CHECKING:
    from tests.core.conftest import History


# --- discovery ---


def test_a_listed_agent_awaits_its_identity(history: History) -> None:
    """Nothing is dialled before there is evidence."""
    agent = history.agent()

    history.listed(agent)

    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.steps(agent) == ["seen"]


def test_an_agent_that_is_listed_again_unchanged_changes_nothing(history: History) -> None:
    """A poll of a quiet fleet writes nothing."""
    history.listed(history.agent())
    before = history.world.records

    history.listed(history.agent())

    assert history.world.records == before


def test_an_agent_leaves_at_once_when_its_source_says_that_it_has_ended(history: History) -> None:
    """Terminated means terminated."""
    agent = history.agent()
    history.listed(agent)

    history.listed(gone=frozenset({agent.id}))

    assert not history.record(agent).present
    assert agent.id not in history.world.tunnels


def test_one_listing_that_lacks_an_agent_is_not_its_end(history: History) -> None:
    """Clouds forget for a moment."""
    agent = history.agent()
    history.listed(agent)

    history.listed()

    assert history.record(agent).present


def test_two_complete_listings_in_a_row_that_lack_an_agent_are_its_end(history: History) -> None:
    """One of many that is gone without a word goes too."""
    agent, others = history.agent(), [history.agent(f"other-{number}") for number in range(20)]
    history.listed(agent, *others)

    history.listed(*others)
    assert history.record(agent).present
    history.now += 1
    history.listed(*others)

    assert not history.record(agent).present


def test_a_listing_that_has_the_agent_starts_the_count_anew(history: History) -> None:
    """Lacked, listed, lacked is not twice in a row."""
    agent = history.agent()
    history.listed(agent)

    history.listed()
    history.listed(agent)
    history.listed()

    assert history.record(agent).present


def test_half_an_answer_takes_nobody_away(history: History) -> None:
    """While something could not be asked, absence means nothing."""
    agent = history.agent()
    history.listed(agent)

    for _ in range(5):
        history.listed(failures=("eu-west-1: throttled",))

    assert history.record(agent).present
    assert not history.record(agent).missed


def test_where_the_list_is_the_truth_one_absence_is_enough(history: History) -> None:
    """A file does not forget for a moment."""
    agent = history.agent(source="file")
    history.listed(agent, source="file")

    history.listed(source="file", absence_is_proof=True)

    assert not history.record(agent).present


def test_a_source_takes_only_its_own_agents_away(history: History) -> None:
    """What another source lists is none of its business."""
    agent = history.agent()
    history.listed(agent)

    history.listed(source="file", gone=frozenset({agent.id}), absence_is_proof=True)

    assert history.record(agent).present


def test_the_source_that_had_an_agent_first_keeps_it(history: History) -> None:
    """Two sources that list one machine do not tear at it."""
    agent = history.agent()
    history.listed(agent)

    history.listed(replace(agent, source="file"), source="file")

    assert history.record(agent).agent == agent


def test_an_agent_that_comes_back_is_believed_as_before(history: History) -> None:
    """Its pin belongs to its incarnation, which is the same."""
    agent = history.agent()
    history.up(agent)
    history.listed(gone=frozenset({agent.id}))
    history.act()
    history.ended(agent, None)

    history.listed(agent)

    assert history.record(agent).trust == history.trust()
    assert history.status(agent).phase is Phase.DOWN
    assert history.steps(agent)[-1] == "seen"


def test_an_agent_that_comes_back_with_a_key_that_another_has_meanwhile_is_quarantined_with_it(
    history: History,
) -> None:
    """One key on two live agents, however it came about."""
    first, second = history.agent("first"), history.agent("second")
    history.believed(first)
    history.listed(gone=frozenset({first.id}))
    history.believed(second)

    history.listed(first, second)

    assert history.record(first).quarantine is not None
    assert history.record(second).quarantine is not None
    assert history.status(first).error == "host-key-shared"


def test_a_rebuilt_agent_has_to_prove_itself_anew(history: History) -> None:
    """The same id, another machine."""
    agent = history.agent()
    history.believed(agent)

    history.listed(replace(agent, incarnation="2"))

    assert history.record(agent).trust is None
    assert history.spec(agent) is None
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.steps(agent)[-1] == "rebuilt"


@pytest.mark.parametrize("facts", [{"addresses": ("10.0.0.9",)}, {"port": 2222}])
def test_an_agent_that_moved_keeps_its_evidence(history: History, facts: dict[str, object]) -> None:
    """No address says who an agent is."""
    agent = history.agent()
    history.believed(agent)

    history.listed(replace(agent, **facts))  # type: ignore[arg-type]

    spec = history.spec(agent)
    assert spec is not None
    assert (spec.addresses, spec.port) == (history.record(agent).agent.addresses, history.record(agent).agent.port)
    assert history.steps(agent)[-1] == "moved"


def test_an_agent_without_an_address_has_nothing_to_dial(history: History) -> None:
    """Evidence alone makes no tunnel."""
    agent = history.agent(addresses=())

    history.believed(agent)

    assert history.record(agent).trust is not None
    assert history.spec(agent) is None


def test_a_change_of_group_that_asks_for_more_drops_weaker_evidence(history: History) -> None:
    """The minimum is the group's, and it is the new group's from now on."""
    agent = history.agent()
    history.receive(Reconfigured(replace(history.rules, minimum={"strict": Method.AUTHORITY})))
    history.believed(agent)

    history.listed(replace(agent, group="strict"))

    assert history.record(agent).trust is None


def test_a_source_that_answers_in_part_is_not_well(history: History) -> None:
    """Status shows what was lacking, and when all was well last."""
    history.listed()
    history.now += 10

    history.listed(failures=("eu-west-1: throttled", "us-east-1: no answer"))

    view = history.world.sources["cloud"]
    assert (view.ok, view.last_success) == (False, 100.0)
    assert view.error == "eu-west-1: throttled; us-east-1: no answer"


def test_a_source_that_fails_keeps_its_agents_and_its_last_success(history: History) -> None:
    """The last snapshot stays in force."""
    agent = history.agent()
    history.listed(agent)
    history.now += 10

    history.receive(DiscoveryFailed("cloud", "throttled"))

    view = history.world.sources["cloud"]
    assert (view.ok, view.last_success, view.error) == (False, 100.0, "throttled")
    assert history.record(agent).present


def test_a_source_that_recovers_is_well_again(history: History) -> None:
    """One whole answer is enough."""
    history.receive(DiscoveryFailed("cloud", "throttled"))

    history.listed()

    assert history.world.sources["cloud"].ok
    assert history.world.sources["cloud"].error is None


def test_a_source_that_is_not_configured_tells_nothing(history: History) -> None:
    """Its answer to a question from before a reload would bring agents that nobody takes away again."""
    before = history.world

    history.listed(history.agent(source="old"), source="old")
    history.receive(DiscoveryFailed("old", "throttled"))

    assert history.world == before


# --- events of a source ---


def test_an_agent_whose_end_an_event_told_is_gone_at_once(history: History) -> None:
    """Before any poll."""
    agent = history.agent()
    history.listed(agent)

    history.receive(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    assert not history.record(agent).present
    assert history.record(agent).history[-1].detail == "EC2 says terminated"


def test_a_listing_that_lags_behind_does_not_bring_it_back(history: History) -> None:
    """In the same incarnation, whatever it says."""
    agent = history.agent()
    history.listed(agent)
    history.receive(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    history.listed(agent)

    assert not history.record(agent).present


def test_a_new_incarnation_does_come_back(history: History) -> None:
    """It is another machine."""
    agent = history.agent()
    history.listed(agent)
    history.receive(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    history.listed(replace(agent, incarnation="2"))

    assert history.record(agent).present


def test_an_event_about_a_stranger_or_from_a_stranger_changes_nothing(history: History) -> None:
    """Events are late, doubled, and about foreign instances."""
    agent = history.agent()
    history.listed(agent)
    before = history.world

    history.receive(
        AgentEnded("file", agent.id, "not its source"),
        AgentEnded("cloud", history.agent("unknown").id, "unknown"),
        FeedReported("unknown", None),
    )

    assert history.world is before


def test_how_a_feed_does_is_shown_and_outlives_a_poll(history: History) -> None:
    """A poll says nothing about it."""
    history.receive(FeedReported("cloud", "queue is gone"))

    history.listed()

    assert (history.world.sources["cloud"].feed_ok, history.world.sources["cloud"].feed_error) == (
        False,
        "queue is gone",
    )


def test_an_agent_that_is_being_rebuilt_is_another_one_from_then_on(history: History) -> None:
    """Though its id and creation time are the same; and so for each rebuild."""
    agent = history.agent()
    history.believed(agent)

    for _ in range(2):
        history.listed(replace(agent, rebuilding=True))
        history.listed(replace(agent, rebuilding=True))
        history.listed(agent)

    assert history.record(agent).agent.incarnation == "1#2"
    assert history.record(agent).trust is None


# --- configuration ---


def test_agents_of_a_source_that_is_removed_leave(history: History) -> None:
    """Nobody would notice their end any more."""
    agent = history.agent()
    history.listed(agent)

    history.receive(Reconfigured(Rules(trust={"file": (Method.PINNED,)})))

    assert not history.record(agent).present
    assert history.world.sources.keys() == {"file"}
    assert history.steps(agent) == ["seen", "left"]


def test_evidence_that_the_rules_no_longer_accept_is_dropped(history: History) -> None:
    """The file decides, for those that are up too."""
    agent = history.agent()
    history.believed(agent)

    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    assert history.record(agent).trust is None
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.world.key_holders == {}


def test_a_changed_forward_changes_what_every_tunnel_should_be(history: History) -> None:
    """The plan sees the difference."""
    agent = history.agent()
    history.believed(agent)

    history.receive(Reconfigured(replace(history.rules, forwards=())))

    spec = history.spec(agent)
    assert spec is not None
    assert spec.forwards == ()
