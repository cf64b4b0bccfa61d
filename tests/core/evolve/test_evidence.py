"""What is believed of an agent's host key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import (
    EvidenceAbsent,
    EvidenceContradicted,
    EvidenceFound,
    Reconfigured,
    ReleaseRequested,
    RetryRequested,
    SeedAdded,
    TunnelDialled,
    TunnelEnded,
)
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase, Resting, Seeking

if TYPE_CHECKING:
    from tests.core.conftest import History


def test_evidence_makes_an_agent_ready_to_be_dialled(history: History) -> None:
    """It is told with its fingerprint."""
    agent = history.agent()

    history.believed(agent)

    spec = history.spec(agent)
    assert spec is not None
    assert spec.trust == history.trust()
    assert history.status(agent).phase is Phase.DOWN
    assert history.record(agent).history[-1].detail.startswith("console: SHA256:")


def test_evidence_for_an_earlier_incarnation_is_not_believed(history: History) -> None:
    """The machine was rebuilt while it was searched for; it is searched for anew."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.receive(EvidenceFound(agent.id, "1", history.trust()))

    assert history.record(agent).trust is None
    assert not isinstance(history.status(agent), Seeking)


def test_evidence_that_the_rules_do_not_accept_is_as_good_as_none(history: History) -> None:
    """It is not asked for again at once, which would bring the same."""
    agent = history.agent()
    history.listed(agent)
    history.act()

    history.receive(EvidenceFound(agent.id, "1", history.trust(method=Method.LABEL)))

    assert history.record(agent).trust is None
    assert history.status(agent).retry_at is not None
    assert history.status(agent).message == "label: the configuration no longer accepts this method"


def test_evidence_once_found_stays(history: History) -> None:
    """A second word on the same incarnation cannot put another key in the place of the first."""
    agent = history.agent()
    history.believed(agent)

    history.receive(EvidenceFound(agent.id, "1", history.trust(2)))

    assert history.record(agent).trust == history.trust()
    assert history.world.key_holders == {history.key(): agent.id}


def test_evidence_for_an_agent_that_has_left_is_not_kept(history: History) -> None:
    """Its search is over, and so is its status."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(gone=frozenset({agent.id}))

    history.receive(EvidenceFound(agent.id, "1", history.trust()))

    assert history.record(agent).trust is None
    assert agent.id not in history.world.tunnels


def test_a_key_that_another_live_agent_has_quarantines_both(history: History) -> None:
    """Neither can be told from the other; the message names both and what to do."""
    first, second = history.agent("first"), history.agent("second")
    history.believed(first)

    history.believed(second)

    for one, other in ((first, second), (second, first)):
        mark = history.record(one).quarantine
        assert mark is not None
        assert mark.code == "host-key-shared"
        assert other.id in mark.message
        assert "tunnelmgr release" in mark.message


def test_an_address_used_again_by_another_machine_is_simply_another_agent(history: History) -> None:
    """No quarantine, no mix-up."""
    old, new = history.agent("old"), history.agent("new")
    history.up(old)

    history.up(new, 2)

    assert history.status(new).phase is Phase.UP
    assert history.record(old).quarantine is None


def test_missing_evidence_is_told_with_its_reason_and_waited_for(history: History) -> None:
    """`list` says for what, and since when."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.now += 5

    history.receive(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    status = history.status(agent)
    assert isinstance(status, Resting)
    assert (status.phase, status.since) == (Phase.AWAITING_IDENTITY, 100.0)
    assert (status.error, status.message) == ("host-key-unknown", "console: no host key block yet")
    assert status.retry_at is not None
    assert history.steps(agent) == ["seen", "waiting"]


def test_the_same_lack_is_told_once(history: History) -> None:
    """A history of sixty moments is not filled by one wait."""
    agent = history.agent()
    history.listed(agent)

    for _ in range(3):
        history.receive(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert history.steps(agent) == ["seen", "waiting"]
    assert history.status(agent).failures == 3


def test_the_lack_of_evidence_for_an_earlier_incarnation_delays_nothing(history: History) -> None:
    """The next search is about the machine that is there now, and may begin at once."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.receive(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert not isinstance(history.status(agent), Seeking)
    assert history.status(agent).retry_at is None


def test_word_about_an_unknown_agent_changes_nothing(history: History) -> None:
    """It may have been forgotten while it was searched for."""
    unknown, before = history.agent("unknown"), history.world

    history.receive(
        EvidenceFound(unknown.id, "1", history.trust()),
        EvidenceAbsent(unknown.id, "1", "nothing"),
        TunnelDialled(unknown.id, 1, "10.0.0.1:22"),
        TunnelEnded(unknown.id, 1, None),
        RetryRequested(unknown.id),
        ReleaseRequested(unknown.id, "none"),
    )

    assert history.world == before


def test_evidence_weaker_than_the_proof_of_before_does_not_count(history: History) -> None:
    """Whoever spoils the better evidence gains nothing by it."""
    agent = history.agent()
    history.believed(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.TOFU,)})))

    history.receive(EvidenceFound(agent.id, "1", history.trust(2, Method.TOFU)))

    assert history.record(agent).trust is None
    assert "weaker than console" in history.status(agent).message


def test_evidence_of_another_key_than_the_proof_of_before_quarantines(history: History) -> None:
    """A key that changes is looked at by a person."""
    agent = history.agent()
    history.believed(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    history.receive(EvidenceFound(agent.id, "1", history.trust(2, Method.AUTHORITY)))

    assert history.status(agent).phase is Phase.QUARANTINED
    assert history.status(agent).error == "host-key-mismatch"


def test_what_contradicts_the_evidence_quarantines(history: History) -> None:
    """Another machine was found where the agent should be."""
    agent = history.agent()
    history.listed(agent)
    history.act()

    history.receive(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    assert history.status(agent).phase is Phase.QUARANTINED
    assert history.status(agent).message == "its certificate is for another agent"


def test_a_quarantine_keeps_its_first_reason(history: History) -> None:
    """What a person is to look into is what came first; a search that was under way may find more of it."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.receive(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    history.receive(EvidenceContradicted(agent.id, "1", "its certificate is for a third one"))

    assert history.status(agent).message == "its certificate is for another agent"
    assert history.steps(agent).count("quarantined") == 1


def test_a_contradiction_of_an_earlier_incarnation_only_ends_the_search(history: History) -> None:
    """The machine was rebuilt meanwhile."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.receive(EvidenceContradicted(agent.id, "1", "another machine"))

    assert history.record(agent).quarantine is None
    assert not isinstance(history.status(agent), Seeking)


def test_a_contradiction_of_an_unknown_agent_changes_nothing(history: History) -> None:
    """It may have been forgotten."""
    before = history.world

    history.receive(EvidenceContradicted(history.agent("unknown").id, "1", "another machine"))

    assert history.world is before


def seeded(history: History) -> None:
    """Let the cloud's agents be proved by a seed, and add one."""
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.SEEDED,)})))
    history.receive(SeedAdded(Seed("one", history.key(), expires=200.0)))


def test_a_seed_proves_the_first_agent_that_names_it(history: History) -> None:
    """And becomes its own."""
    agent = history.agent()
    seeded(history)
    history.listed(agent)
    history.act()

    history.receive(EvidenceFound(agent.id, "1", history.trust(method=Method.SEEDED)))

    assert history.record(agent).trust == history.trust(method=Method.SEEDED)
    assert history.world.seeds["one"].holder == agent.id


def test_a_seed_proves_nobody_else(history: History) -> None:
    """A second machine that names it has copied it."""
    first, second = history.agent("first"), history.agent("second")
    seeded(history)
    history.listed(first, second)
    history.act()
    history.receive(EvidenceFound(first.id, "1", history.trust(method=Method.SEEDED)))

    history.receive(EvidenceFound(second.id, "1", history.trust(method=Method.SEEDED)))

    assert history.record(second).trust is None
    assert history.record(first).quarantine is None
    assert "its seed was used already" in history.status(second).message


def test_a_quarantined_agent_without_a_worker_is_shown_as_such_at_once(history: History) -> None:
    """With the reason, and without a next try."""
    first, second = history.agent("first"), history.agent("second")
    history.dialling(first)
    history.ended(first)

    history.listed(first, second)
    history.receive(EvidenceFound(second.id, "1", history.trust()))

    assert [history.status(one).phase for one in (first, second)] == [Phase.QUARANTINED] * 2
    assert history.status(first).retry_at is None
