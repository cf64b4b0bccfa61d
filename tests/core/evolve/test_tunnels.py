"""What workers report, and what it makes of a tunnel's status."""

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
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Phase
from tunnelmgr.core.world import HIHISTORY_LENGTH
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import History

IPV4, IPV6 = Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000)


def test_a_tunnel_is_up_when_a_probe_has_come_back(history: History) -> None:
    """Not when it was dialled, nor when it was bound."""
    agent = history.agent()
    history.dialling(agent)

    history.receive(TunnelDialled(agent.id, 1, "10.0.0.1:22"), TunnelBound(agent.id, 1, (IPV4, IPV6)))
    before = history.status(agent).phase
    history.receive(TunnelProbed(agent.id, 1, 0.02))

    assert before is Phase.CONNECTING
    assert history.status(agent).phase is Phase.UP
    assert history.status(agent).probe.ms == pytest.approx(20)
    assert history.steps(agent) == ["seen", "evidence", "dialled", "bound", "probed"]


def test_a_later_probe_is_no_news(history: History) -> None:
    """It moves the time of the last probe and nothing else."""
    agent = history.agent()
    history.up(agent)
    since, steps = history.status(agent).since, history.steps(agent)
    history.now += 15

    history.receive(TunnelProbed(agent.id, 1, 0.03))

    assert history.status(agent).probe.at == history.now
    assert history.status(agent).since == since
    assert history.steps(agent) == steps


def test_binding_again_the_same_is_no_news(history: History) -> None:
    """A worker that asks again for what it lacks does not fill the history."""
    agent = history.agent()
    history.up(agent)
    before = history.world

    history.receive(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert history.world is before


def test_an_address_that_was_refused_is_named(history: History) -> None:
    """A host without IPv6 is well all the same."""
    agent = history.agent()
    history.listen = (IPV4,)
    history.up(agent)

    history.receive(TunnelBound(agent.id, 1, (IPV4,), (IPV6,)))

    assert history.record(agent).history[-1].detail == "127.0.0.1:5000; refused: [::1]:5000"
    assert history.status(agent).error is None


def test_a_squatter_is_shown_on_a_tunnel_that_comes_up_all_the_same(history: History) -> None:
    """Clients may ask the squatter first, so status must say so."""
    agent = history.agent()
    history.dialling(agent)

    history.receive(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    assert history.status(agent).phase is Phase.UP
    assert history.status(agent).error == "listen-refused"
    assert "[::1]:5000" in history.status(agent).message


def test_a_squatter_that_lets_go_is_shown_no_more(history: History) -> None:
    """The defect goes with its cause, without a new tunnel."""
    agent = history.agent()
    history.dialling(agent)
    history.receive(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    history.receive(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert history.status(agent).error is None


def test_a_report_from_an_earlier_life_changes_nothing(history: History) -> None:
    """A worker of the past neither brings a tunnel up nor ends it."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)
    history.now += 10
    history.act()
    before = history.world

    history.receive(TunnelProbed(agent.id, 1, 0.02), TunnelEnded(agent.id, 1, None))

    assert history.status(agent).life == 2
    assert history.world is before


def test_a_report_does_not_end_a_search(history: History) -> None:
    """A search for evidence is no worker, whatever its number."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    before = history.world

    history.receive(TunnelEnded(agent.id, history.status(agent).life, None))

    assert history.world is before


def test_a_failed_dial_is_tried_again_by_the_schedule(history: History) -> None:
    """The error stays visible while the next try is under way."""
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
    """The schedule depends on them."""
    agent = history.agent()
    history.dialling(agent)

    for _ in range(3):
        history.ended(agent)
        history.now += 10
        history.act()

    assert history.status(agent).failures == 3


def test_a_tunnel_that_was_settled_starts_its_retries_afresh(history: History) -> None:
    """What stood for long was no failure of before."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)
    history.now += 10
    history.up(agent)
    history.now += 60

    history.ended(agent)

    assert history.status(agent).failures == 1
    assert history.steps(agent)[-1] == "lost"


def test_a_tunnel_that_was_up_for_a_moment_does_not(history: History) -> None:
    """One that flaps is held back more each time."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)
    history.now += 10
    history.up(agent)
    history.now += 1

    history.ended(agent)

    assert history.status(agent).failures == 2


def test_a_failure_that_only_a_person_can_judge_quarantines(history: History) -> None:
    """No next try, and the reason stays."""
    agent = history.agent()
    history.dialling(agent)

    history.ended(agent, Pace.NEVER)

    status, mark = history.status(agent), history.record(agent).quarantine
    assert (status.phase, status.error, status.retry_at) == (Phase.QUARANTINED, "code-never", None)
    assert mark is not None
    assert mark.message == "it failed, never"
    assert history.steps(agent)[-2:] == ["failed", "quarantined"]


def test_a_worker_that_fails_in_quarantine_leaves_the_reason_for_that_in_place(history: History) -> None:
    """Nor does it leave a time to try again, at which there would be nothing to do."""
    agent = history.agent()
    history.up(agent)
    history.receive(EvidenceContradicted(agent.id, agent.incarnation, "another key"))

    history.ended(agent)

    assert history.status(agent).error == "host-key-mismatch"
    assert history.status(agent).retry_at is None


def test_an_end_that_was_asked_for_is_no_failure(history: History) -> None:
    """A revoked tunnel's last cry quarantines nobody."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))
    history.act()

    history.ended(agent, Pace.NEVER)

    assert history.record(agent).quarantine is None
    assert (history.status(agent).failures, history.status(agent).retry_at) == (0, None)
    assert history.steps(agent)[-1] == "closed"


def test_a_drained_tunnel_that_breaks_is_closed_too(history: History) -> None:
    """It was to end anyway."""
    agent = history.agent()
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, forwards=())))
    history.act()

    history.ended(agent)

    assert history.status(agent).retry_at is None
    assert history.steps(agent)[-1] == "closed"


def test_the_status_of_an_agent_that_has_left_goes_with_its_worker(history: History) -> None:
    """As long as the worker lives it is counted, and no longer."""
    agent = history.agent()
    history.up(agent)

    history.listed(gone=frozenset({agent.id}))
    while_it_lives = agent.id in history.world.tunnels
    history.ended(agent)

    assert while_it_lives
    assert agent.id not in history.world.tunnels


def test_an_agent_that_has_left_is_shown_as_down_since_it_was_first_seen(history: History) -> None:
    """`show` can still tell its history."""
    agent = history.agent()
    history.listed(agent)
    history.listed(gone=frozenset({agent.id}))

    assert history.status(agent).phase is Phase.DOWN
    assert history.status(agent).since == 100.0


def test_a_history_keeps_its_latest_moments(history: History) -> None:
    """The oldest go first."""
    agent = history.agent()
    history.listed(agent)

    for number in range(HIHISTORY_LENGTH + 5):
        history.receive(EvidenceAbsent(agent.id, "1", f"reason {number}"))

    told = history.record(agent).history
    assert len(told) == HIHISTORY_LENGTH
    assert told[-1].detail == f"reason {HIHISTORY_LENGTH + 4}"


def test_evidence_that_may_run_out_is_asked_for_at_each_life(history: History) -> None:
    """A certificate is good for one tunnel."""
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


def test_asking_anew_for_evidence_does_not_hurry_a_dial_that_fails(history: History) -> None:
    """Each life is held back by the failures of those before, though there was a search between them."""
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


def test_a_failure_is_told_with_its_own_words(history: History) -> None:
    """The history says why."""
    agent = history.agent()
    history.dialling(agent)

    history.receive(TunnelEnded(agent.id, 1, Failure("unreachable", Pace.SOON, "cannot reach 10.0.0.1:22: refused")))

    assert history.record(agent).history[-1].detail == "cannot reach 10.0.0.1:22: refused"
