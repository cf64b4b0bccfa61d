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
    """A newly listed agent awaits its identity: nothing is dialled before there is evidence."""
    agent = history.agent()

    history.listed(agent)

    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.steps(agent) == ["seen"]


def test_an_agent_that_is_listed_again_unchanged_changes_nothing(history: History) -> None:
    """A snapshot that lists the same agents again leaves every record unchanged."""
    history.listed(history.agent())
    before = history.world.records

    history.listed(history.agent())

    assert history.world.records == before


def test_an_agent_leaves_at_once_when_its_source_reports_its_end(history: History) -> None:
    """An agent that its source reports as ended leaves with that snapshot, and so does its status."""
    agent = history.agent()
    history.listed(agent)

    history.listed(gone=frozenset({agent.id}))

    assert not history.record(agent).present
    assert agent.id not in history.world.tunnels


def test_one_listing_that_lacks_an_agent_is_not_its_end(history: History) -> None:
    """A single listing that lacks an agent does not remove it, because clouds omit machines now and then."""
    agent = history.agent()
    history.listed(agent)

    history.listed()

    assert history.record(agent).present


def test_two_complete_listings_in_a_row_that_lack_an_agent_are_its_end(history: History) -> None:
    """One agent of many leaves when two complete listings in a row lack it."""
    agent, others = history.agent(), [history.agent(f"other-{number}") for number in range(20)]
    history.listed(agent, *others)

    history.listed(*others)
    assert history.record(agent).present
    history.now += 1
    history.listed(*others)

    assert not history.record(agent).present


def test_a_listing_that_has_the_agent_resets_the_count(history: History) -> None:
    """Listings that lack the agent count only if no listing between them has it."""
    agent = history.agent()
    history.listed(agent)

    history.listed()
    history.listed(agent)
    history.listed()

    assert history.record(agent).present


def test_an_answer_in_part_removes_no_agent(history: History) -> None:
    """While a source reports failures, absence from its listing removes no agent and is not counted."""
    agent = history.agent()
    history.listed(agent)

    for _ in range(5):
        history.listed(failures=("eu-west-1: throttled",))

    assert history.record(agent).present
    assert not history.record(agent).missed


def test_one_absence_is_enough_if_the_list_is_authoritative(history: History) -> None:
    """An agent that an authoritative list, such as a file, lacks once leaves at once."""
    agent = history.agent(source="file")
    history.listed(agent, source="file")

    history.listed(source="file", absence_is_proof=True)

    assert not history.record(agent).present


def test_a_source_removes_only_its_own_agents(history: History) -> None:
    """A source cannot remove an agent of another source, even if it reports its end."""
    agent = history.agent()
    history.listed(agent)

    history.listed(source="file", gone=frozenset({agent.id}), absence_is_proof=True)

    assert history.record(agent).present


def test_the_source_that_had_an_agent_first_keeps_it(history: History) -> None:
    """If two sources list one machine, the agent stays with the first."""
    agent = history.agent()
    history.listed(agent)

    history.listed(replace(agent, source="file"), source="file")

    assert history.record(agent).agent == agent


def test_an_agent_that_comes_back_is_believed_as_before(history: History) -> None:
    """An agent that returns in the same incarnation keeps its evidence."""
    agent = history.agent()
    history.up(agent)
    history.listed(gone=frozenset({agent.id}))
    history.act()
    history.ended(agent, None)

    history.listed(agent)

    assert history.record(agent).trust == history.trust()
    assert history.status(agent).phase is Phase.DOWN
    assert history.steps(agent)[-1] == "seen"


def test_an_agent_that_returns_with_a_key_that_another_has_since_claimed_is_quarantined_with_it(
    history: History,
) -> None:
    """Two present agents with equal claims to one key are both quarantined, also if one of them was away."""
    first, second = history.agent("first"), history.agent("second")
    history.believed(first)
    history.listed(gone=frozenset({first.id}))
    history.believed(second)

    history.listed(first, second)

    assert history.record(first).quarantine is not None
    assert history.record(second).quarantine is not None
    assert history.status(first).error == "host-key-shared"


def test_a_rebuilt_agent_has_to_prove_itself_again(history: History) -> None:
    """A new incarnation under the same id loses its evidence and awaits its identity."""
    agent = history.agent()
    history.believed(agent)

    history.listed(replace(agent, incarnation="2"))

    assert history.record(agent).trust is None
    assert history.spec(agent) is None
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.steps(agent)[-1] == "rebuilt"


@pytest.mark.parametrize("facts", [{"addresses": ("10.0.0.9",)}, {"port": 2222}])
def test_an_agent_that_moved_keeps_its_evidence(history: History, facts: dict[str, object]) -> None:
    """An agent with another address or port keeps its evidence, and its tunnel's spec follows."""
    agent = history.agent()
    history.believed(agent)

    history.listed(replace(agent, **facts))  # type: ignore[arg-type]

    spec = history.spec(agent)
    assert spec is not None
    assert (spec.addresses, spec.port) == (history.record(agent).agent.addresses, history.record(agent).agent.port)
    assert history.steps(agent)[-1] == "moved"


def test_an_agent_without_an_address_has_nothing_to_dial(history: History) -> None:
    """An agent with evidence but without an address should have no tunnel."""
    agent = history.agent(addresses=())

    history.believed(agent)

    assert history.record(agent).trust is not None
    assert history.spec(agent) is None


def test_a_change_to_a_group_with_a_higher_minimum_drops_weaker_evidence(history: History) -> None:
    """An agent that changes to a group with a higher minimum loses evidence that is weaker than it."""
    agent = history.agent()
    history.receive(Reconfigured(replace(history.rules, minimum={"strict": Method.AUTHORITY})))
    history.believed(agent)

    history.listed(replace(agent, group="strict"))

    assert history.record(agent).trust is None


def test_a_source_that_answers_in_part_is_not_ok(history: History) -> None:
    """A source that answered in part shows what was missing, and the time of its last complete answer."""
    history.listed()
    history.now += 10

    history.listed(failures=("eu-west-1: throttled", "us-east-1: no answer"))

    view = history.world.sources["cloud"]
    assert (view.ok, view.last_success) == (False, 100.0)
    assert view.error == "eu-west-1: throttled; us-east-1: no answer"


def test_a_source_that_fails_keeps_its_agents_and_its_last_success(history: History) -> None:
    """A source that fails keeps its agents, and shows the error and the time of its last success."""
    agent = history.agent()
    history.listed(agent)
    history.now += 10

    history.receive(DiscoveryFailed("cloud", "throttled"))

    view = history.world.sources["cloud"]
    assert (view.ok, view.last_success, view.error) == (False, 100.0, "throttled")
    assert history.record(agent).present


def test_a_source_that_recovers_is_ok_again(history: History) -> None:
    """One complete answer clears a source's error."""
    history.receive(DiscoveryFailed("cloud", "throttled"))

    history.listed()

    assert history.world.sources["cloud"].ok
    assert history.world.sources["cloud"].error is None


def test_answers_of_a_source_that_is_not_configured_are_ignored(history: History) -> None:
    """A late answer of a source that a reload removed adds no agents, because nothing would remove them again."""
    before = history.world

    history.listed(history.agent(source="old"), source="old")
    history.receive(DiscoveryFailed("old", "throttled"))

    assert history.world == before


# --- events of a source ---


def test_an_agent_whose_end_an_event_reports_leaves_at_once(history: History) -> None:
    """An event of the source's feed ends an agent before any poll, and its reason is in the history."""
    agent = history.agent()
    history.listed(agent)

    history.receive(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    assert not history.record(agent).present
    assert history.record(agent).history[-1].detail == "EC2 says terminated"


def test_a_listing_that_lags_behind_does_not_bring_an_ended_agent_back(history: History) -> None:
    """A listing that still has an agent whose end an event reported does not bring that incarnation back."""
    agent = history.agent()
    history.listed(agent)
    history.receive(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    history.listed(agent)

    assert not history.record(agent).present


def test_a_new_incarnation_of_an_ended_agent_does_come_back(history: History) -> None:
    """A new incarnation under the id of an agent whose end an event reported is present."""
    agent = history.agent()
    history.listed(agent)
    history.receive(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    history.listed(replace(agent, incarnation="2"))

    assert history.record(agent).present


def test_events_about_unknown_agents_or_of_other_sources_change_nothing(history: History) -> None:
    """Events about unknown agents, about agents of other sources, and of unknown sources change nothing."""
    agent = history.agent()
    history.listed(agent)
    before = history.world

    history.receive(
        AgentEnded("file", agent.id, "not its source"),
        AgentEnded("cloud", history.agent("unknown").id, "unknown"),
        FeedReported("unknown", None),
    )

    assert history.world is before


def test_a_feeds_health_is_shown_and_outlives_a_poll(history: History) -> None:
    """The health of an event feed stays as reported when a poll succeeds."""
    history.receive(FeedReported("cloud", "queue is gone"))

    history.listed()

    assert (history.world.sources["cloud"].feed_ok, history.world.sources["cloud"].feed_error) == (
        False,
        "queue is gone",
    )


def test_each_rebuild_under_the_same_id_is_a_new_incarnation(history: History) -> None:
    """Each rebuild counts as a new incarnation, even if the id and the creation time stay the same."""
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
    """Agents of a source that is no longer configured leave, because nothing would notice their end."""
    agent = history.agent()
    history.listed(agent)

    history.receive(Reconfigured(Rules(trust={"file": (Method.PINNED,)})))

    assert not history.record(agent).present
    assert history.world.sources.keys() == {"file"}
    assert history.steps(agent) == ["seen", "left"]


def test_evidence_that_the_rules_no_longer_accept_is_dropped(history: History) -> None:
    """Evidence by a method that a new configuration does not accept is dropped, and its key is free."""
    agent = history.agent()
    history.believed(agent)

    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    assert history.record(agent).trust is None
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.world.key_holders == {}


def test_a_changed_forward_changes_the_spec_of_every_tunnel(history: History) -> None:
    """New forwards in the configuration are in the spec of every desired tunnel."""
    agent = history.agent()
    history.believed(agent)

    history.receive(Reconfigured(replace(history.rules, forwards=())))

    spec = history.spec(agent)
    assert spec is not None
    assert spec.forwards == ()
