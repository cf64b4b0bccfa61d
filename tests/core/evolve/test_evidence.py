"""The evidence for an agent's host key: found, missing or contradicted."""

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
    """An agent with evidence should have a tunnel, and its history has the key's fingerprint."""
    agent = history.agent()

    history.believed(agent)

    spec = history.spec(agent)
    assert spec is not None
    assert spec.trust == history.trust()
    assert history.status(agent).phase is Phase.DOWN
    assert history.record(agent).history[-1].detail.startswith("console: SHA256:")


def test_evidence_for_an_earlier_incarnation_is_not_believed(history: History) -> None:
    """Evidence for a machine that was rebuilt during the search is dropped, and the search begins again."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.receive(EvidenceFound(agent.id, "1", history.trust()))

    assert history.record(agent).trust is None
    assert not isinstance(history.status(agent), Seeking)


def test_evidence_that_the_rules_do_not_accept_counts_as_missing(history: History) -> None:
    """Evidence that the rules do not accept is dropped, and the next search waits."""
    agent = history.agent()
    history.listed(agent)
    history.act()

    history.receive(EvidenceFound(agent.id, "1", history.trust(method=Method.LABEL)))

    assert history.record(agent).trust is None
    assert history.status(agent).retry_at is not None
    assert history.status(agent).message == "label: the configuration no longer accepts this method"


def test_evidence_once_found_stays(history: History) -> None:
    """Further evidence for the same incarnation cannot replace the key that was found first."""
    agent = history.agent()
    history.believed(agent)

    history.receive(EvidenceFound(agent.id, "1", history.trust(2)))

    assert history.record(agent).trust == history.trust()
    assert history.world.key_holders == {history.key(): agent.id}


def test_evidence_for_an_agent_that_has_left_is_not_kept(history: History) -> None:
    """Evidence for an agent that has left is dropped, and the end of the search removes its status."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(gone=frozenset({agent.id}))

    history.receive(EvidenceFound(agent.id, "1", history.trust()))

    assert history.record(agent).trust is None
    assert agent.id not in history.world.tunnels


def test_equal_claims_to_one_key_quarantine_both_agents(history: History) -> None:
    """Two agents with equally strong evidence of one key are quarantined; each message names both and the command."""
    first, second = history.agent("first"), history.agent("second")
    history.believed(first)

    history.believed(second)

    for one, other in ((first, second), (second, first)):
        mark = history.record(one).quarantine
        assert mark is not None
        assert mark.code == "host-key-shared"
        assert other.id in mark.message
        assert "tunnelmgr release" in mark.message


def test_an_address_that_is_used_again_by_another_machine_is_another_agent(history: History) -> None:
    """Two agents with the same address but different keys do not affect each other."""
    old, new = history.agent("old"), history.agent("new")
    history.up(old)

    history.up(new, 2)

    assert history.status(new).phase is Phase.UP
    assert history.record(old).quarantine is None


def test_missing_evidence_is_shown_with_its_reason_and_sought_again(history: History) -> None:
    """An agent whose evidence is missing shows what is missing and since when, and has a time for the next search."""
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


def test_the_same_missing_evidence_is_one_step_in_the_history(history: History) -> None:
    """Searches that fail for the same reason add one step to the history, no matter how many they are."""
    agent = history.agent()
    history.listed(agent)

    for _ in range(3):
        history.receive(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert history.steps(agent) == ["seen", "waiting"]
    assert history.status(agent).failures == 3


def test_missing_evidence_for_an_earlier_incarnation_delays_nothing(history: History) -> None:
    """A search that ends without evidence for an earlier incarnation does not delay the search for the present one."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.receive(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert not isinstance(history.status(agent), Seeking)
    assert history.status(agent).retry_at is None


def test_reports_about_an_unknown_agent_change_nothing(history: History) -> None:
    """Reports and requests about an agent that is unknown or forgotten change nothing."""
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


def test_evidence_weaker_than_the_proof_before_does_not_count(history: History) -> None:
    """Evidence that is weaker than what proved the agent before is ignored, even if the rules accept it."""
    agent = history.agent()
    history.believed(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.TOFU,)})))

    history.receive(EvidenceFound(agent.id, "1", history.trust(2, Method.TOFU)))

    assert history.record(agent).trust is None
    assert "weaker than console" in history.status(agent).message


def test_evidence_of_another_key_than_the_proof_before_quarantines(history: History) -> None:
    """Evidence of another key than the one that proved the agent before quarantines it."""
    agent = history.agent()
    history.believed(agent)
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    history.receive(EvidenceFound(agent.id, "1", history.trust(2, Method.AUTHORITY)))

    assert history.status(agent).phase is Phase.QUARANTINED
    assert history.status(agent).error == "host-key-mismatch"


def test_a_contradiction_of_the_evidence_quarantines(history: History) -> None:
    """An agent whose machine contradicts the evidence is quarantined with that message."""
    agent = history.agent()
    history.listed(agent)
    history.act()

    history.receive(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    assert history.status(agent).phase is Phase.QUARANTINED
    assert history.status(agent).message == "its certificate is for another agent"


def test_a_quarantine_keeps_its_first_reason(history: History) -> None:
    """A quarantined agent keeps the first reason, also if a search that was under way finds another."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.receive(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    history.receive(EvidenceContradicted(agent.id, "1", "its certificate is for a third one"))

    assert history.status(agent).message == "its certificate is for another agent"
    assert history.steps(agent).count("quarantined") == 1


def test_a_contradiction_of_an_earlier_incarnation_only_ends_the_search(history: History) -> None:
    """A contradiction about an earlier incarnation ends the search and quarantines nothing."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.receive(EvidenceContradicted(agent.id, "1", "another machine"))

    assert history.record(agent).quarantine is None
    assert not isinstance(history.status(agent), Seeking)


def test_a_contradiction_of_an_unknown_agent_changes_nothing(history: History) -> None:
    """A contradiction about an unknown or forgotten agent changes nothing."""
    before = history.world

    history.receive(EvidenceContradicted(history.agent("unknown").id, "1", "another machine"))

    assert history.world is before


def seeded(history: History) -> None:
    """Let the cloud's agents be proved by a seed, and add one."""
    history.receive(Reconfigured(replace(history.rules, trust={"cloud": (Method.SEEDED,)})))
    history.receive(SeedAdded(Seed("one", history.key(), expires=200.0)))


def test_a_seed_proves_the_first_agent_that_names_it(history: History) -> None:
    """A seed proves the first agent that names it, which becomes the seed's holder."""
    agent = history.agent()
    seeded(history)
    history.listed(agent)
    history.act()

    history.receive(EvidenceFound(agent.id, "1", history.trust(method=Method.SEEDED)))

    assert history.record(agent).trust == history.trust(method=Method.SEEDED)
    assert history.world.seeds["one"].holder == agent.id


def test_a_seed_proves_no_second_agent(history: History) -> None:
    """A second agent that names a used seed is not proved, and the holder is not harmed."""
    first, second = history.agent("first"), history.agent("second")
    seeded(history)
    history.listed(first, second)
    history.act()
    history.receive(EvidenceFound(first.id, "1", history.trust(method=Method.SEEDED)))

    history.receive(EvidenceFound(second.id, "1", history.trust(method=Method.SEEDED)))

    assert history.record(second).trust is None
    assert history.record(first).quarantine is None
    assert "its seed was used already" in history.status(second).message


def test_agents_without_a_worker_are_shown_as_quarantined_at_once(history: History) -> None:
    """Agents that are quarantined while they rest show that phase at once, without a next try."""
    first, second = history.agent("first"), history.agent("second")
    history.dialling(first)
    history.ended(first)

    history.listed(first, second)
    history.receive(EvidenceFound(second.id, "1", history.trust()))

    assert [history.status(one).phase for one in (first, second)] == [Phase.QUARANTINED] * 2
    assert history.status(first).retry_at is None
