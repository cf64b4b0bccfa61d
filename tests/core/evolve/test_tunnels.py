"""What workers report, and how it changes a tunnel's status."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import (
    EvidenceAbsent,
    EvidenceContradicted,
    EvidenceFound,
    Reconfigured,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.evolve.tunnels import probed_again
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Phase
from tunnelmgr.core.world import HISTORY_LENGTH
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import History

IPV4, IPV6 = Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000)


def test_a_tunnel_is_up_when_a_probe_has_come_back(history: History) -> None:
    """A tunnel is up once a probe has come back, not when it was dialled or bound."""
    agent = history.agent()
    history.dialling(agent)

    history.receive(TunnelDialled(agent.id, 1, "10.0.0.1:22"), TunnelBound(agent.id, 1, (IPV4, IPV6)))
    before = history.status(agent).phase
    history.receive(TunnelProbed(agent.id, 1, 0.02))

    assert before is Phase.CONNECTING
    assert history.status(agent).phase is Phase.UP
    assert history.status(agent).probe.ms == pytest.approx(20)
    assert history.steps(agent) == ["seen", "evidence", "dialled", "bound", "probed"]


def test_a_later_probe_changes_only_the_last_probe(history: History) -> None:
    """A probe of a tunnel that is up changes the last probe, and neither the phase's start nor the history."""
    agent = history.agent()
    history.up(agent)
    since, steps = history.status(agent).since, history.steps(agent)
    history.now += 15

    history.receive(TunnelProbed(agent.id, 1, 0.03))

    assert history.status(agent).probe.at == history.now
    assert history.status(agent).since == since
    assert history.steps(agent) == steps


def test_probes_taken_together_change_the_same_as_one_by_one(history: History) -> None:
    """Probes of many tunnels, taken in one step, leave the world that the single events would leave."""
    agents = [history.agent(name) for name in "abc"]
    history.listed(*agents)
    for number, agent in enumerate(agents[:2], 1):
        history.claim(agent, number)
        history.act()
        history.up_again(agent, number)
    probes = [
        TunnelProbed(agents[0].id, 1, 0.03),
        TunnelProbed(agents[1].id, 0, 0.04),  # of an earlier life
        TunnelProbed(agents[2].id, 1, 0.05),  # of a tunnel that nobody has opened
        TunnelProbed(agents[0].id, 1, 0.06),
    ]
    before = history.world

    together = probed_again(before, probes, history.now + 9)
    for probe in probes:
        history.world = evolve(history.world, probe, history.now + 9)

    assert together == history.world
    assert together.tunnels[agents[0].id] != before.tunnels[agents[0].id]
    assert together.tunnels[agents[1].id] is before.tunnels[agents[1].id]
    assert probed_again(before, probes[1:3], history.now) is before


def test_binding_the_same_addresses_again_changes_nothing(history: History) -> None:
    """A worker that tries refused addresses again with the same result adds nothing to the history."""
    agent = history.agent()
    history.up(agent)
    before = history.world

    history.receive(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert history.world is before


def test_a_refused_address_is_in_the_history(history: History) -> None:
    """The history names an optional address that the agent refused, and the tunnel has no error."""
    agent = history.agent()
    history.listen = (IPV4,)
    history.up(agent)

    history.receive(TunnelBound(agent.id, 1, (IPV4,), (IPV6,)))

    assert history.record(agent).history[-1].detail == "127.0.0.1:5000; refused: [::1]:5000"
    assert history.status(agent).error is None


def test_a_port_conflict_is_shown_on_a_tunnel_that_is_up(history: History) -> None:
    """A tunnel that is up shows that another process answers on an address where clients may connect first."""
    agent = history.agent()
    history.dialling(agent)

    history.receive(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    assert history.status(agent).phase is Phase.UP
    assert history.status(agent).error == "listen-refused"
    assert "[::1]:5000" in history.status(agent).message


def test_a_port_conflict_that_has_ended_is_no_longer_shown(history: History) -> None:
    """The error of a port conflict disappears with the conflict, without a new tunnel."""
    agent = history.agent()
    history.dialling(agent)
    history.receive(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    history.receive(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert history.status(agent).error is None


def test_a_report_from_an_earlier_life_changes_nothing(history: History) -> None:
    """Reports of an earlier worker neither bring a tunnel up nor end it."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)
    history.now += 10
    history.act()
    before = history.world

    history.receive(TunnelProbed(agent.id, 1, 0.02), TunnelEnded(agent.id, 1, None))

    assert history.status(agent).life == 2
    assert history.world is before


def test_a_workers_report_does_not_end_a_search(history: History) -> None:
    """A worker's report does not end a search for evidence, even if the life's number matches."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    before = history.world

    history.receive(TunnelEnded(agent.id, history.status(agent).life, None))

    assert history.world is before


def test_a_failed_dial_is_tried_again_by_the_schedule(history: History) -> None:
    """A failed dial gets a time for the next try, and its error stays visible while that is under way."""
    agent = history.agent()
    history.dialling(agent)

    history.ended(agent)

    status = history.status(agent)
    assert (status.phase, status.failures, status.error) == (Phase.DOWN, 1, "code-soon")
    assert status.retry_at is not None
    assert history.steps(agent)[-1] == "failed"
    history.now = status.retry_at
    history.act()
    assert history.status(agent).error == "code-soon"


def test_failures_in_a_row_are_counted(history: History) -> None:
    """The status counts failures in a row, on which the schedule depends."""
    agent = history.agent()
    history.dialling(agent)

    for _ in range(3):
        history.ended(agent)
        history.now += 10
        history.act()

    assert history.status(agent).failures == 3


def test_a_tunnel_that_was_up_for_long_starts_its_retries_again(history: History) -> None:
    """The loss of a tunnel that was up for long counts as the first failure."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)
    history.now += 10
    history.up(agent)
    history.now += 60

    history.ended(agent)

    assert history.status(agent).failures == 1
    assert history.steps(agent)[-1] == "lost"


def test_a_tunnel_that_was_up_briefly_continues_its_retries(history: History) -> None:
    """The loss of a tunnel that was up only briefly adds to the failures before."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)
    history.now += 10
    history.up(agent)
    history.now += 1

    history.ended(agent)

    assert history.status(agent).failures == 2


def test_a_failure_that_an_operator_has_to_decide_quarantines(history: History) -> None:
    """A failure with pace NEVER quarantines the agent with its message, without a next try."""
    agent = history.agent()
    history.dialling(agent)

    history.ended(agent, Pace.NEVER)

    status, mark = history.status(agent), history.record(agent).quarantine
    assert (status.phase, status.error, status.retry_at) == (Phase.QUARANTINED, "code-never", None)
    assert mark is not None
    assert mark.message == "it failed, never"
    assert history.steps(agent)[-2:] == ["failed", "quarantined"]


def test_a_worker_that_fails_in_quarantine_leaves_its_reason_in_place(history: History) -> None:
    """The end of a quarantined agent's worker changes neither the reason nor sets a time for the next try."""
    agent = history.agent()
    history.up(agent)
    history.receive(EvidenceContradicted(agent.id, agent.incarnation, "another key"))

    history.ended(agent)

    assert history.status(agent).error == "host-key-mismatch"
    assert history.status(agent).retry_at is None


def test_a_requested_end_is_not_a_failure(history: History) -> None:
    """A failure that a revoked worker reports at its end neither quarantines nor counts."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))
    history.act()

    history.ended(agent, Pace.NEVER)

    assert history.record(agent).quarantine is None
    assert (history.status(agent).failures, history.status(agent).retry_at) == (0, None)
    assert history.steps(agent)[-1] == "closed"


def test_a_draining_tunnel_that_fails_is_closed(history: History) -> None:
    """A failure of a draining tunnel is its end, and sets no time for a retry."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, forwards=())))
    history.act()

    history.ended(agent)

    assert history.status(agent).retry_at is None
    assert history.steps(agent)[-1] == "closed"


def test_the_status_of_an_agent_that_has_left_ends_with_its_worker(history: History) -> None:
    """An agent that has left keeps its status until its worker has ended."""
    agent = history.agent()
    history.up(agent)

    history.listed(gone=frozenset({agent.id}))
    while_it_lives = agent.id in history.world.tunnels
    history.ended(agent)

    assert while_it_lives
    assert agent.id not in history.world.tunnels


def test_an_agent_that_has_left_is_shown_as_down_since_it_was_first_seen(history: History) -> None:
    """An agent that left without a tunnel is shown as down since it was first seen."""
    agent = history.agent()
    history.listed(agent)
    history.listed(gone=frozenset({agent.id}))

    assert history.status(agent).phase is Phase.DOWN
    assert history.status(agent).since == 100.0


def test_a_history_keeps_its_latest_entries(history: History) -> None:
    """A history that is full drops its oldest entries."""
    agent = history.agent()
    history.listed(agent)

    for number in range(HISTORY_LENGTH + 5):
        history.receive(EvidenceAbsent(agent.id, "1", f"reason {number}"))

    entries = history.record(agent).history
    assert len(entries) == HISTORY_LENGTH
    assert entries[-1].detail == f"reason {HISTORY_LENGTH + 4}"


def test_evidence_that_may_expire_is_sought_before_each_dial(history: History) -> None:
    """A certificate is valid for one life of a tunnel; its end makes the agent await its identity again."""
    agent = history.agent()
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))
    history.listed(agent)
    history.act()
    history.receive(EvidenceFound(agent.id, "1", history.trust(method=Method.AUTHORITY)))
    history.act()

    history.ended(agent)

    assert history.record(agent).trust is None
    assert history.record(agent).proved == history.trust(method=Method.AUTHORITY)
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY


def test_a_search_between_dials_does_not_shorten_their_waits(history: History) -> None:
    """Failures of dials are counted across the searches for evidence between them."""
    agent = history.agent()
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))
    history.listed(agent)

    for _ in range(3):
        history.act()
        history.receive(EvidenceFound(agent.id, "1", history.trust(method=Method.AUTHORITY)))
        history.act()
        history.ended(agent)
        held_back_until = history.status(agent).retry_at
        assert held_back_until is not None
        history.now = held_back_until

    assert history.status(agent).failures == 3


def test_a_failure_is_in_the_history_with_its_message(history: History) -> None:
    """The history has the message of the failure that ended a worker."""
    agent = history.agent()
    history.dialling(agent)

    history.receive(TunnelEnded(agent.id, 1, Failure("unreachable", Pace.SOON, "cannot reach 10.0.0.1:22: refused")))

    assert history.record(agent).history[-1].detail == "cannot reach 10.0.0.1:22: refused"
