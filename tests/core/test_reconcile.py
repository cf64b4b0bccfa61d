"""What the difference between desired and observed makes the controller do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import DrainRequested, EvidenceAbsent, EvidenceContradicted, Reconfigured, RetryRequested
from tunnelmgr.core.precedence import NEW, PROVEN, Precedence
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel, SeekEvidence, desired, next_due, plan
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import Story


def test_evidence_is_sought_for_an_agent_that_is_new(story: Story) -> None:
    """No evidence, no dial."""
    agent = story.agent()
    story.listed(agent)

    assert story.act() == (SeekEvidence(agent),)
    assert story.status(agent).working


def test_an_agent_with_evidence_is_dialled(story: Story) -> None:
    """The first life has number one."""
    agent = story.agent()
    story.believed(agent)
    spec = desired(story.world)[agent.id]

    assert story.act() == (OpenTunnel(agent.id, 1, spec, Precedence(NEW, story.record(agent).first_seen)),)
    assert story.status(agent).phase is Phase.CONNECTING


def test_what_is_under_way_is_not_begun_again(story: Story) -> None:
    """Neither a search nor a dial."""
    new, believed = story.agent("new"), story.agent("believed")
    story.believed(believed)
    story.listed(new, believed)
    story.act()

    assert plan(story.world, story.now + 1000) == ()


def test_the_newest_agent_is_served_first(story: Story) -> None:
    """A build is waiting for the one that has just appeared."""
    old, new = story.agent("old"), story.agent("new")
    story.listed(old)
    story.now += 10
    story.listed(old, new)

    assert story.act() == (SeekEvidence(new), SeekEvidence(old))


def test_closings_stand_before_openings(story: Story) -> None:
    """An agent that moved still holds the port there."""
    going, coming = story.agent("going"), story.agent("coming")
    story.up(going)
    story.believed(coming, 2)
    story.listed(coming, gone=frozenset({going.id}))

    closing, opening = story.act()

    assert isinstance(closing, CloseTunnel)
    assert isinstance(opening, OpenTunnel)


def test_a_tunnel_as_it_should_be_is_left_alone(story: Story) -> None:
    """A poll of a quiet fleet does nothing."""
    agent = story.agent()
    story.up(agent)
    story.listed(agent)

    assert story.act() == ()


def test_the_tunnel_of_an_agent_that_ended_is_revoked_once(story: Story) -> None:
    """Its address may be a stranger's already; a second word to the worker could cut short its cleaning up."""
    agent = story.agent()
    story.up(agent)
    story.listed(gone=frozenset({agent.id}))

    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)
    assert story.act() == ()


def test_the_tunnel_of_a_quarantined_agent_is_revoked(story: Story) -> None:
    """It is not what we took it for."""
    agent = story.agent()
    story.up(agent)
    story.hear(EvidenceContradicted(agent.id, agent.incarnation, "another key"))

    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_the_tunnel_of_a_rebuilt_agent_is_revoked(story: Story) -> None:
    """Its key is believed no more."""
    agent = story.agent()
    story.up(agent)
    story.listed(replace(agent, incarnation="2"))

    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_a_tunnel_whose_evidence_is_not_accepted_any_more_is_revoked(story: Story) -> None:
    """A stricter file counts at once."""
    agent = story.agent()
    story.up(agent)
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.AUTHORITY,)})))

    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_the_tunnel_of_the_same_machine_is_drained_where_it_should_be_another(story: Story) -> None:
    """Transfers may end; the replacement follows when it has ended."""
    agent = story.agent()
    story.up(agent)
    story.hear(Reconfigured(replace(story.rules, forwards=())))

    assert story.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)
    assert story.status(agent).phase is Phase.DRAINING
    assert story.act() == ()
    story.ended(agent, None)
    assert story.act() == (
        OpenTunnel(agent.id, 2, desired(story.world)[agent.id], Precedence(PROVEN, story.record(agent).first_seen)),
    )


def test_a_drain_turns_into_a_revocation_where_the_agent_ends_meanwhile(story: Story) -> None:
    """Gentleness is for the living."""
    agent = story.agent()
    story.up(agent)
    story.hear(Reconfigured(replace(story.rules, forwards=())))
    story.act()
    story.listed(gone=frozenset({agent.id}))

    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_a_drain_of_the_controller_closes_gently_and_starts_nothing(story: Story) -> None:
    """Shutdown is one path with all the rest."""
    standing, new = story.agent("standing"), story.agent("new")
    story.up(standing)
    story.listed(standing, new)

    story.hear(DrainRequested())

    assert story.act() == (CloseTunnel(standing.id, 1, Manner.DRAIN),)
    assert desired(story.world) == {}
    assert next_due(story.world) is None


def test_the_next_try_waits_for_its_time(story: Story) -> None:
    """And the loop knows when that is."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent, Pace.SLOW)
    due = next_due(story.world)

    assert due is not None
    assert plan(story.world, due - 0.001) == ()
    assert len(plan(story.world, due)) == 1


def test_a_try_that_an_operator_asked_for_waits_for_nothing(story: Story) -> None:
    """It is in the next plan, so the loop need not be woken for it."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent, Pace.SLOW)

    story.hear(RetryRequested(agent.id))

    assert next_due(story.world) is None
    assert len(story.act()) == 1


def test_the_loop_is_not_woken_for_an_agent_that_cannot_be_dialled(story: Story) -> None:
    """It would find nothing to do, again and again."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent)

    story.listed(replace(agent, addresses=()))

    assert story.status(agent).retry_at is not None
    assert next_due(story.world) is None


def test_the_earliest_of_several_times_wakes_the_loop(story: Story) -> None:
    """Searches and dials alike."""
    dialled, waiting = story.agent("dialled"), story.agent("waiting")
    story.dialling(dialled)
    story.ended(dialled)
    story.listed(dialled, waiting)
    story.hear(EvidenceAbsent(waiting.id, "1", "no host key block yet"))

    times = [story.status(dialled).retry_at, story.status(waiting).retry_at]
    assert next_due(story.world) == min(at for at in times if at is not None)


def test_a_search_keeps_count_of_those_before(story: Story) -> None:
    """The schedule grows while evidence is lacking."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    story.hear(EvidenceAbsent(agent.id, "1", "no host key block yet"))
    story.now += 60

    assert story.act() == (SeekEvidence(agent),)
    assert story.status(agent).failures == 1


def test_a_plan_needs_no_status_to_begin_from(story: Story) -> None:
    """A world that holds records only is served as well."""
    new, believed = story.agent("new"), story.agent("believed")
    story.believed(believed)
    story.listed(new, believed)
    story.world = replace(story.world, tunnels={})

    assert story.status(new).phase is Phase.AWAITING_IDENTITY
    assert {type(action) for action in story.act()} == {SeekEvidence, OpenTunnel}
    assert story.status(believed).life == 1
