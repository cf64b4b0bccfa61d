"""What the difference between desired and observed makes the controller do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import DrainRequested, EvidenceAbsent, EvidenceContradicted, Reconfigured, RetryRequested
from tunnelmgr.core.precedence import NEW, PROVEN, Precedence
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel, SeekEvidence, desired, next_due, plan
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase, Seeking, TunnelSpec, Up
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import History


def test_evidence_is_sought_for_an_agent_that_is_new(history: History) -> None:
    """No evidence, no dial."""
    agent = history.agent()
    history.listed(agent)

    assert history.act() == (SeekEvidence(agent),)
    assert isinstance(history.status(agent), Seeking)


def test_an_agent_with_evidence_is_dialled(history: History) -> None:
    """The first life has number one."""
    agent = history.agent()
    history.believed(agent)
    spec = desired(history.world)[agent.id]

    assert history.act() == (OpenTunnel(agent.id, 1, spec, Precedence(NEW, history.record(agent).first_seen)),)
    assert history.status(agent).phase is Phase.CONNECTING


def test_what_is_under_way_is_not_begun_again(history: History) -> None:
    """Neither a search nor a dial."""
    new, believed = history.agent("new"), history.agent("believed")
    history.believed(believed)
    history.listed(new, believed)
    history.act()

    assert plan(history.world, history.now + 1000) == ()


def test_the_newest_agent_is_served_first(history: History) -> None:
    """A build is waiting for the one that has just appeared."""
    old, new = history.agent("old"), history.agent("new")
    history.listed(old)
    history.now += 10
    history.listed(old, new)

    assert history.act() == (SeekEvidence(new), SeekEvidence(old))


def test_closings_stand_before_openings(history: History) -> None:
    """An agent that moved still holds the port there."""
    going, coming = history.agent("going"), history.agent("coming")
    history.up(going)
    history.believed(coming, 2)
    history.listed(coming, gone=frozenset({going.id}))

    closing, opening = history.act()

    assert isinstance(closing, CloseTunnel)
    assert isinstance(opening, OpenTunnel)


def test_a_tunnel_as_it_should_be_is_left_alone(history: History) -> None:
    """A poll of a quiet fleet does nothing."""
    agent = history.agent()
    history.up(agent)
    history.listed(agent)

    assert history.act() == ()


@pytest.mark.parametrize("field", TunnelSpec._fields)
def test_a_tunnel_is_closed_when_anything_that_it_is_made_from_has_changed(history: History, field: str) -> None:
    """`plan` compares every field of the spec of a standing tunnel with what is desired."""
    agent = history.agent()
    history.up(agent)
    status = history.status(agent)
    assert isinstance(status, Up)
    changed = status.spec._replace(**{field: history.trust(9) if field == "trust" else None})

    history.world = history.world.with_tunnel(agent.id, replace(status, spec=changed))

    assert [type(action) for action in history.act()] == [CloseTunnel]


def test_the_tunnel_of_an_agent_that_ended_is_revoked_once(history: History) -> None:
    """Its address may be a stranger's already; a second word to the worker could cut short its cleaning up."""
    agent = history.agent()
    history.up(agent)
    history.listed(gone=frozenset({agent.id}))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)
    assert history.act() == ()


def test_the_tunnel_of_a_quarantined_agent_is_revoked(history: History) -> None:
    """It is not what we took it for."""
    agent = history.agent()
    history.up(agent)
    history.receive(EvidenceContradicted(agent.id, agent.incarnation, "another key"))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_the_tunnel_of_a_rebuilt_agent_is_revoked(history: History) -> None:
    """Its key is believed no more."""
    agent = history.agent()
    history.up(agent)
    history.listed(replace(agent, incarnation="2"))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_a_tunnel_whose_evidence_is_not_accepted_any_more_is_revoked(history: History) -> None:
    """A stricter file counts at once."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_the_tunnel_of_the_same_machine_is_drained_where_it_should_be_another(history: History) -> None:
    """Transfers may end; the replacement follows when it has ended."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, forwards=())))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)
    assert history.status(agent).phase is Phase.DRAINING
    assert history.act() == ()
    history.ended(agent, None)
    assert history.act() == (
        OpenTunnel(agent.id, 2, desired(history.world)[agent.id], Precedence(PROVEN, history.record(agent).first_seen)),
    )


def test_a_drain_turns_into_a_revocation_where_the_agent_ends_meanwhile(history: History) -> None:
    """Gentleness is for the living."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, forwards=())))
    history.act()
    history.listed(gone=frozenset({agent.id}))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_a_drain_of_the_controller_closes_gently_and_starts_nothing(history: History) -> None:
    """Shutdown is one path with all the rest."""
    standing, new = history.agent("standing"), history.agent("new")
    history.up(standing)
    history.listed(standing, new)

    history.receive(DrainRequested())

    assert history.act() == (CloseTunnel(standing.id, 1, Manner.DRAIN),)
    assert desired(history.world) == {}
    assert next_due(history.world) is None


def test_the_next_try_waits_for_its_time(history: History) -> None:
    """And the loop knows when that is."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.SLOW)
    due = next_due(history.world)

    assert due is not None
    assert plan(history.world, due - 0.001) == ()
    assert len(plan(history.world, due)) == 1


def test_a_try_that_an_operator_asked_for_waits_for_nothing(history: History) -> None:
    """It is in the next plan, so the loop need not be woken for it."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.SLOW)

    history.receive(RetryRequested(agent.id))

    assert next_due(history.world) is None
    assert len(history.act()) == 1


def test_the_loop_is_not_woken_for_an_agent_that_cannot_be_dialled(history: History) -> None:
    """It would find nothing to do, again and again."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)

    history.listed(replace(agent, addresses=()))

    assert history.status(agent).retry_at is not None
    assert next_due(history.world) is None


def test_the_earliest_of_several_times_wakes_the_loop(history: History) -> None:
    """Searches and dials alike."""
    dialled, waiting = history.agent("dialled"), history.agent("waiting")
    history.dialling(dialled)
    history.ended(dialled)
    history.listed(dialled, waiting)
    history.receive(EvidenceAbsent(waiting.id, "1", "no host key block yet"))

    times = [history.status(dialled).retry_at, history.status(waiting).retry_at]
    assert next_due(history.world) == min(at for at in times if at is not None)


def test_a_search_keeps_count_of_those_before(history: History) -> None:
    """The schedule grows while evidence is lacking."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.receive(EvidenceAbsent(agent.id, "1", "no host key block yet"))
    history.now += 60

    assert history.act() == (SeekEvidence(agent),)
    assert history.status(agent).failures == 1


def test_a_plan_needs_no_status_to_begin_from(history: History) -> None:
    """A world that holds records only is served as well."""
    new, believed = history.agent("new"), history.agent("believed")
    history.believed(believed)
    history.listed(new, believed)
    history.world = replace(history.world, tunnels={})

    assert history.status(new).phase is Phase.AWAITING_IDENTITY
    assert {type(action) for action in history.act()} == {SeekEvidence, OpenTunnel}
    assert history.status(believed).life == 1
