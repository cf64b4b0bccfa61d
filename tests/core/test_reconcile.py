"""What the difference between desired and observed makes the controller do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import (
    DrainRequested,
    EvidenceAbsent,
    EvidenceContradicted,
    Reconfigured,
    RetryRequested,
    StopRequested,
)
from tunnelmgr.core.precedence import NEW, PROVEN, Precedence
from tunnelmgr.core.reconcile import (
    CloseTunnel,
    Due,
    Manner,
    OpenTunnel,
    SeekEvidence,
    desired,
    first_in_order,
    next_due,
    plan,
)
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase, Seeking, TunnelSpec, Up
from tunnelmgr.core.world import Stage
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.core.conftest import History


def test_evidence_is_sought_for_an_agent_that_is_new(history: History) -> None:
    """`plan` seeks evidence for a new agent before anything else."""
    agent = history.agent()
    history.listed(agent)

    assert history.act() == (SeekEvidence(agent),)
    assert isinstance(history.status(agent), Seeking)


def test_an_agent_with_evidence_is_dialled(history: History) -> None:
    """`plan` opens a tunnel for an agent with evidence; its first life has number 1."""
    agent = history.agent()
    history.believed(agent)
    spec = desired(history.world)[agent.id]

    order = Precedence(NEW, -history.record(agent).first_seen)
    assert history.act() == (OpenTunnel(agent.id, 1, spec, order, tests_key=True),)
    assert history.status(agent).phase is Phase.CONNECTING


def test_what_is_under_way_is_not_started_again(history: History) -> None:
    """`plan` begins neither a search nor a dial that is already under way."""
    new, believed = history.agent("new"), history.agent("believed")
    history.believed(believed)
    history.listed(new, believed)
    history.act()

    assert plan(history.world, history.now + 1000) == ()


def test_the_newest_agent_is_served_first(history: History) -> None:
    """Of new agents, the one that appeared last comes first, because a build waits for it."""
    old, new = history.agent("old"), history.agent("new")
    history.listed(old)
    history.now += 10
    history.listed(old, new)

    assert history.act() == (SeekEvidence(new), SeekEvidence(old))


def test_closings_come_before_openings(history: History) -> None:
    """Closings come before openings, because an agent that moved still holds the port there."""
    going, coming = history.agent("going"), history.agent("coming")
    history.up(going)
    history.believed(coming, 2)
    history.listed(coming, gone=frozenset({going.id}))

    closing, opening = history.act()

    assert isinstance(closing, CloseTunnel)
    assert isinstance(opening, OpenTunnel)


def test_a_tunnel_as_it_should_be_is_left_alone(history: History) -> None:
    """`plan` does nothing for a tunnel that is as desired."""
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
    """The tunnel of an ended agent is revoked, and only once: a second request could interrupt its cleanup."""
    agent = history.agent()
    history.up(agent)
    history.listed(gone=frozenset({agent.id}))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)
    assert history.act() == ()


def test_the_tunnel_of_a_quarantined_agent_is_revoked(history: History) -> None:
    """The tunnel of an agent that was quarantined is revoked."""
    agent = history.agent()
    history.up(agent)
    history.receive(EvidenceContradicted(agent.id, agent.incarnation, "another key"))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_the_tunnel_of_a_rebuilt_agent_is_revoked(history: History) -> None:
    """The tunnel of an agent that was rebuilt is revoked."""
    agent = history.agent()
    history.up(agent)
    history.listed(replace(agent, incarnation="2"))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_a_tunnel_whose_evidence_is_no_longer_accepted_is_revoked(history: History) -> None:
    """A tunnel is revoked if a new configuration does not accept its evidence."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_a_tunnel_with_new_forwards_is_drained_and_replaced(history: History) -> None:
    """A tunnel whose forwards changed is drained, and its replacement opens when it has ended."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, forwards=())))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)
    assert history.status(agent).phase is Phase.DRAINING
    assert history.act() == ()
    history.ended(agent, None)
    spec, order = desired(history.world)[agent.id], Precedence(PROVEN, -history.record(agent).first_seen)
    assert history.act() == (OpenTunnel(agent.id, 2, spec, order, tests_key=True),)


def test_a_drain_becomes_a_revocation_if_the_agent_ends(history: History) -> None:
    """A draining tunnel is revoked if its agent ends."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, forwards=())))
    history.act()
    history.listed(gone=frozenset({agent.id}))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_a_drain_of_the_controller_drains_tunnels_and_starts_nothing(history: History) -> None:
    """When the controller drains, every tunnel is drained, and nothing begins or is due."""
    standing, new = history.agent("standing"), history.agent("new")
    history.up(standing)
    history.listed(standing, new)

    history.receive(DrainRequested())

    assert history.act() == (CloseTunnel(standing.id, 1, Manner.DRAIN),)
    assert desired(history.world) == {}
    assert next_due(history.world) is None


def test_a_requested_stop_changes_nothing_until_the_drain(history: History) -> None:
    """While transfers end, tunnels stand and are opened as before, since other agents need their registry."""
    standing, new = history.agent("standing"), history.agent("new")
    history.up(standing)
    history.receive(StopRequested())

    history.listed(standing, new)
    history.believed(new, 2)

    assert desired(history.world).keys() == {standing.id, new.id}
    assert [type(action) for action in history.act()] == [OpenTunnel]


def test_a_stop_never_goes_back(history: History) -> None:
    """A stop that is requested during the drain does not end the drain."""
    history.receive(StopRequested(), DrainRequested(), StopRequested())

    assert history.world.stage is Stage.DRAINING


def test_the_next_try_waits_for_its_time(history: History) -> None:
    """`plan` begins the next try when its time has come, which `next_due` returns."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.SLOW)
    due = next_due(history.world)

    assert due is not None
    assert plan(history.world, due - 0.001) == ()
    assert len(plan(history.world, due)) == 1


def test_what_may_begin_is_chosen_before_it_is_built(history: History) -> None:
    """`admit` gets all that is due, a dial or a search each, and what it chooses is started in its order."""
    agents = [history.agent(str(number)) for number in range(5)]
    history.believed(agents[3])
    history.listed(*agents)
    asked: list[Due] = []

    def admit(due: list[Due]) -> Sequence[Due]:
        asked.extend(due)
        return first_in_order(2, due)

    chosen = plan(history.world, history.now, admit)

    assert sorted(one.record.agent.id for one in asked) == sorted(one.id for one in agents)
    assert [one.record.agent.id for one in asked if one.is_dial] == [agents[3].id]
    assert chosen == plan(history.world, history.now)[:2]


def test_a_requested_retry_is_in_the_next_plan(history: History) -> None:
    """A retry that an operator requested is in the next plan."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.SLOW)

    history.receive(RetryRequested(agent.id))

    assert next_due(history.world) is None
    assert len(history.act()) == 1


def test_the_loop_is_not_woken_for_an_agent_that_cannot_be_dialled(history: History) -> None:
    """`next_due` ignores an agent without an address, for which `plan` has nothing to do."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)

    history.listed(replace(agent, addresses=()))

    assert history.status(agent).retry_at is not None
    assert next_due(history.world) is None


def test_the_earliest_of_several_times_wakes_the_loop(history: History) -> None:
    """`next_due` returns the earliest time of all searches and dials."""
    dialled, waiting = history.agent("dialled"), history.agent("waiting")
    history.dialling(dialled)
    history.ended(dialled)
    history.listed(dialled, waiting)
    history.receive(EvidenceAbsent(waiting.id, "1", "no host key block yet"))

    times = [history.status(dialled).retry_at, history.status(waiting).retry_at]
    assert next_due(history.world) == min(at for at in times if at is not None)


def test_a_search_keeps_the_count_of_earlier_failures(history: History) -> None:
    """A new search keeps the number of failed searches, on which the schedule depends."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.receive(EvidenceAbsent(agent.id, "1", "no host key block yet"))
    history.now += 60

    assert history.act() == (SeekEvidence(agent),)
    assert history.status(agent).failures == 1


def test_a_plan_needs_no_statuses(history: History) -> None:
    """`plan` and `begin` work on a world that has records but no statuses."""
    new, believed = history.agent("new"), history.agent("believed")
    history.believed(believed)
    history.listed(new, believed)
    history.world = replace(history.world, tunnels={})

    assert history.status(new).phase is Phase.AWAITING_IDENTITY
    assert {type(action) for action in history.act()} == {SeekEvidence, OpenTunnel}
    assert history.status(believed).life == 1
