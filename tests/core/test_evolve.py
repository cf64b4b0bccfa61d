"""How each event changes the world."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import (
    AgentEnded,
    DiscoveryFailed,
    EvidenceAbsent,
    EvidenceContradicted,
    EvidenceFound,
    FeedHeard,
    MemoryExpired,
    Reconfigured,
    ReleaseRequested,
    RetryRequested,
    SeedAdded,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Phase, Resting, Seeking
from tunnelmgr.core.world import HIHISTORY_LENGTH
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import History

IPV4, IPV6 = Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000)

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
    history.hear(Reconfigured(replace(history.rules, minimum={"strict": Method.AUTHORITY})))
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

    history.hear(DiscoveryFailed("cloud", "throttled"))

    view = history.world.sources["cloud"]
    assert (view.ok, view.last_success, view.error) == (False, 100.0, "throttled")
    assert history.record(agent).present


def test_a_source_that_recovers_is_well_again(history: History) -> None:
    """One whole answer is enough."""
    history.hear(DiscoveryFailed("cloud", "throttled"))

    history.listed()

    assert history.world.sources["cloud"].ok
    assert history.world.sources["cloud"].error is None


def test_a_source_that_is_not_configured_tells_nothing(history: History) -> None:
    """Its answer to a question from before a reload would bring agents that nobody takes away again."""
    before = history.world

    history.listed(history.agent(source="old"), source="old")
    history.hear(DiscoveryFailed("old", "throttled"))

    assert history.world == before


# --- events of a source ---


def test_an_agent_whose_end_an_event_told_is_gone_at_once(history: History) -> None:
    """Before any poll."""
    agent = history.agent()
    history.listed(agent)

    history.hear(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    assert not history.record(agent).present
    assert history.record(agent).history[-1].detail == "EC2 says terminated"


def test_a_listing_that_lags_behind_does_not_bring_it_back(history: History) -> None:
    """In the same incarnation, whatever it says."""
    agent = history.agent()
    history.listed(agent)
    history.hear(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    history.listed(agent)

    assert not history.record(agent).present


def test_a_new_incarnation_does_come_back(history: History) -> None:
    """It is another machine."""
    agent = history.agent()
    history.listed(agent)
    history.hear(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    history.listed(replace(agent, incarnation="2"))

    assert history.record(agent).present


def test_an_event_about_a_stranger_or_from_a_stranger_changes_nothing(history: History) -> None:
    """Events are late, doubled, and about foreign instances."""
    agent = history.agent()
    history.listed(agent)
    before = history.world

    history.hear(
        AgentEnded("file", agent.id, "not its source"),
        AgentEnded("cloud", history.agent("unknown").id, "unknown"),
        FeedHeard("unknown", None),
    )

    assert history.world is before


def test_how_a_feed_does_is_shown_and_outlives_a_poll(history: History) -> None:
    """A poll says nothing about it."""
    history.hear(FeedHeard("cloud", "queue is gone"))

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

    history.hear(Reconfigured(Rules(trust={"file": (Method.PINNED,)})))

    assert not history.record(agent).present
    assert history.world.sources.keys() == {"file"}
    assert history.steps(agent) == ["seen", "left"]


def test_evidence_that_the_rules_no_longer_accept_is_dropped(history: History) -> None:
    """The file decides, for those that are up too."""
    agent = history.agent()
    history.believed(agent)

    history.hear(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    assert history.record(agent).trust is None
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.world.key_holders == {}


def test_a_changed_forward_changes_what_every_tunnel_should_be(history: History) -> None:
    """The plan sees the difference."""
    agent = history.agent()
    history.believed(agent)

    history.hear(Reconfigured(replace(history.rules, forwards=())))

    spec = history.spec(agent)
    assert spec is not None
    assert spec.forwards == ()


# --- evidence ---


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

    history.hear(EvidenceFound(agent.id, "1", history.trust()))

    assert history.record(agent).trust is None
    assert not isinstance(history.status(agent), Seeking)


def test_evidence_that_the_rules_do_not_accept_is_as_good_as_none(history: History) -> None:
    """It is not asked for again at once, which would bring the same."""
    agent = history.agent()
    history.listed(agent)
    history.act()

    history.hear(EvidenceFound(agent.id, "1", history.trust(method=Method.LABEL)))

    assert history.record(agent).trust is None
    assert history.status(agent).retry_at is not None
    assert history.status(agent).message == "label: is not believed any more"


def test_evidence_once_found_stays(history: History) -> None:
    """A second word on the same incarnation cannot put another key in the place of the first."""
    agent = history.agent()
    history.believed(agent)

    history.hear(EvidenceFound(agent.id, "1", history.trust(2)))

    assert history.record(agent).trust == history.trust()
    assert history.world.key_holders == {history.key(): agent.id}


def test_evidence_for_an_agent_that_has_left_is_not_kept(history: History) -> None:
    """Its search is over, and so is its status."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(gone=frozenset({agent.id}))

    history.hear(EvidenceFound(agent.id, "1", history.trust()))

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

    history.hear(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

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
        history.hear(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert history.steps(agent) == ["seen", "waiting"]
    assert history.status(agent).failures == 3


def test_the_lack_of_evidence_for_an_earlier_incarnation_delays_nothing(history: History) -> None:
    """The next search is about the machine that is there now, and may begin at once."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.hear(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert not isinstance(history.status(agent), Seeking)
    assert history.status(agent).retry_at is None


def test_word_about_an_unknown_agent_changes_nothing(history: History) -> None:
    """It may have been forgotten while it was searched for."""
    unknown, before = history.agent("unknown"), history.world

    history.hear(
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
    history.hear(Reconfigured(replace(history.rules, trust={"cloud": (Method.TOFU,)})))

    history.hear(EvidenceFound(agent.id, "1", history.trust(2, Method.TOFU)))

    assert history.record(agent).trust is None
    assert "weaker than console" in history.status(agent).message


def test_evidence_of_another_key_than_the_proof_of_before_quarantines(history: History) -> None:
    """A key that changes is looked at by a person."""
    agent = history.agent()
    history.believed(agent)
    history.hear(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))

    history.hear(EvidenceFound(agent.id, "1", history.trust(2, Method.AUTHORITY)))

    assert history.status(agent).phase is Phase.QUARANTINED
    assert history.status(agent).error == "host-key-mismatch"


def test_what_contradicts_the_evidence_quarantines(history: History) -> None:
    """Another machine was found where the agent should be."""
    agent = history.agent()
    history.listed(agent)
    history.act()

    history.hear(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    assert history.status(agent).phase is Phase.QUARANTINED
    assert history.status(agent).message == "its certificate is for another agent"


def test_a_quarantine_keeps_its_first_reason(history: History) -> None:
    """What a person is to look into is what came first; a search that was under way may find more of it."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.hear(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    history.hear(EvidenceContradicted(agent.id, "1", "its certificate is for a third one"))

    assert history.status(agent).message == "its certificate is for another agent"
    assert history.steps(agent).count("quarantined") == 1


def test_a_contradiction_of_an_earlier_incarnation_only_ends_the_search(history: History) -> None:
    """The machine was rebuilt meanwhile."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    history.listed(replace(agent, incarnation="2"))

    history.hear(EvidenceContradicted(agent.id, "1", "another machine"))

    assert history.record(agent).quarantine is None
    assert not isinstance(history.status(agent), Seeking)


def test_a_contradiction_of_an_unknown_agent_changes_nothing(history: History) -> None:
    """It may have been forgotten."""
    before = history.world

    history.hear(EvidenceContradicted(history.agent("unknown").id, "1", "another machine"))

    assert history.world is before


def seeded(history: History) -> None:
    """Let the cloud's agents be proved by a seed, and add one."""
    history.hear(Reconfigured(replace(history.rules, trust={"cloud": (Method.SEEDED,)})))
    history.hear(SeedAdded(Seed("one", history.key(), expires=200.0)))


def test_a_seed_proves_the_first_agent_that_names_it(history: History) -> None:
    """And becomes its own."""
    agent = history.agent()
    seeded(history)
    history.listed(agent)
    history.act()

    history.hear(EvidenceFound(agent.id, "1", history.trust(method=Method.SEEDED)))

    assert history.record(agent).trust == history.trust(method=Method.SEEDED)
    assert history.world.seeds["one"].holder == agent.id


def test_a_seed_proves_nobody_else(history: History) -> None:
    """A second machine that names it has copied it."""
    first, second = history.agent("first"), history.agent("second")
    seeded(history)
    history.listed(first, second)
    history.act()
    history.hear(EvidenceFound(first.id, "1", history.trust(method=Method.SEEDED)))

    history.hear(EvidenceFound(second.id, "1", history.trust(method=Method.SEEDED)))

    assert history.record(second).trust is None
    assert history.record(first).quarantine is None
    assert "its seed was used already" in history.status(second).message


# --- the tunnel's life ---


def test_a_tunnel_is_up_when_a_probe_has_come_back(history: History) -> None:
    """Not when it was dialled, nor when it was bound."""
    agent = history.agent()
    history.dialling(agent)

    history.hear(TunnelDialled(agent.id, 1, "10.0.0.1:22"), TunnelBound(agent.id, 1, (IPV4, IPV6)))
    before = history.status(agent).phase
    history.hear(TunnelProbed(agent.id, 1, 0.02))

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

    history.hear(TunnelProbed(agent.id, 1, 0.03))

    assert history.status(agent).probe.at == history.now
    assert history.status(agent).since == since
    assert history.steps(agent) == steps


def test_binding_again_the_same_is_no_news(history: History) -> None:
    """A worker that asks again for what it lacks does not fill the history."""
    agent = history.agent()
    history.up(agent)
    before = history.world

    history.hear(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert history.world is before


def test_an_address_that_was_refused_is_named(history: History) -> None:
    """A host without IPv6 is well all the same."""
    agent = history.agent()
    history.listen = (IPV4,)
    history.up(agent)

    history.hear(TunnelBound(agent.id, 1, (IPV4,), (IPV6,)))

    assert history.record(agent).history[-1].detail == "127.0.0.1:5000; not [::1]:5000"
    assert history.status(agent).error is None


def test_a_squatter_is_shown_on_a_tunnel_that_comes_up_all_the_same(history: History) -> None:
    """Clients may ask the squatter first, so status must say so."""
    agent = history.agent()
    history.dialling(agent)

    history.hear(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    assert history.status(agent).phase is Phase.UP
    assert history.status(agent).error == "listen-refused"
    assert "[::1]:5000" in history.status(agent).message


def test_a_squatter_that_lets_go_is_shown_no_more(history: History) -> None:
    """The defect goes with its cause, without a new tunnel."""
    agent = history.agent()
    history.dialling(agent)
    history.hear(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    history.hear(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert history.status(agent).error is None


def test_a_report_from_an_earlier_life_changes_nothing(history: History) -> None:
    """A worker of the past neither brings a tunnel up nor ends it."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent)
    history.now += 10
    history.act()
    before = history.world

    history.hear(TunnelProbed(agent.id, 1, 0.02), TunnelEnded(agent.id, 1, None))

    assert history.status(agent).life == 2
    assert history.world is before


def test_a_report_does_not_end_a_search(history: History) -> None:
    """A search for evidence is no worker, whatever its number."""
    agent = history.agent()
    history.listed(agent)
    history.act()
    before = history.world

    history.hear(TunnelEnded(agent.id, history.status(agent).life, None))

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
    history.hear(EvidenceContradicted(agent.id, agent.incarnation, "another key"))

    history.ended(agent)

    assert history.status(agent).error == "host-key-mismatch"
    assert history.status(agent).retry_at is None


def test_an_end_that_was_asked_for_is_no_failure(history: History) -> None:
    """A revoked tunnel's last cry quarantines nobody."""
    agent = history.agent()
    history.up(agent)
    history.hear(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))
    history.act()

    history.ended(agent, Pace.NEVER)

    assert history.record(agent).quarantine is None
    assert (history.status(agent).failures, history.status(agent).retry_at) == (0, None)
    assert history.steps(agent)[-1] == "closed"


def test_a_drained_tunnel_that_breaks_is_closed_too(history: History) -> None:
    """It was to end anyway."""
    agent = history.agent()
    history.up(agent)
    history.hear(Reconfigured(replace(history.rules, forwards=())))
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
        history.hear(EvidenceAbsent(agent.id, "1", f"reason {number}"))

    told = history.record(agent).history
    assert len(told) == HIHISTORY_LENGTH
    assert told[-1].detail == f"reason {HIHISTORY_LENGTH + 4}"


def test_evidence_that_may_run_out_is_asked_for_at_each_life(history: History) -> None:
    """A certificate is good for one tunnel."""
    agent = history.agent()
    history.hear(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))
    history.listed(agent)
    history.act()
    history.hear(EvidenceFound(agent.id, "1", history.trust(method=Method.AUTHORITY)))
    history.act()

    history.ended(agent)

    assert history.record(agent).trust is None
    assert history.record(agent).proved == history.trust(method=Method.AUTHORITY)
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY


def test_asking_anew_for_evidence_does_not_hurry_a_dial_that_fails(history: History) -> None:
    """Each life is held back by the failures of those before, though there was a search between them."""
    agent = history.agent()
    history.hear(Reconfigured(replace(history.rules, trust={"cloud": (Method.AUTHORITY,)})))
    history.listed(agent)

    for _ in range(3):
        history.act()
        history.hear(EvidenceFound(agent.id, "1", history.trust(method=Method.AUTHORITY)))
        history.act()
        history.ended(agent)
        held_back_until = history.status(agent).retry_at
        assert held_back_until is not None
        history.now = held_back_until

    assert history.status(agent).failures == 3


# --- people, and time ---


def test_a_retry_makes_the_next_try_due_now(history: History) -> None:
    """An operator who has mended the agent need not wait."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.SLOW)

    history.hear(RetryRequested(agent.id, uid=1000))

    assert (history.status(agent).retry_at, history.status(agent).failures) == (None, 0)
    assert (history.record(agent).history[-1].step, history.record(agent).history[-1].uid) == ("retry", 1000)


def test_a_retry_of_what_is_under_way_changes_nothing(history: History) -> None:
    """There is nothing to hurry."""
    agent = history.agent()
    history.dialling(agent)
    before = history.world

    history.hear(RetryRequested(agent.id))

    assert history.world is before


def test_a_release_ends_a_quarantine_and_forgets_the_key(history: History) -> None:
    """What was believed led there; evidence is asked for anew."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.NEVER)

    history.hear(ReleaseRequested(agent.id, "rebuilt by hand", uid=1000))

    record = history.record(agent)
    assert (record.quarantine, record.trust, history.spec(agent)) == (None, None, None)
    assert history.status(agent).phase is Phase.AWAITING_IDENTITY
    assert history.world.key_holders == {}
    last = record.history[-1]
    assert (last.step, last.detail, last.uid) == ("released", "rebuilt by hand", 1000)


def test_a_release_of_an_agent_that_is_free_changes_nothing(history: History) -> None:
    """Its pin stays."""
    agent = history.agent()
    history.believed(agent)
    before = history.world

    history.hear(ReleaseRequested(agent.id, "none"))

    assert history.world is before


def test_a_quarantine_outlives_absence(history: History) -> None:
    """Going away and coming back is no way out."""
    agent = history.agent()
    history.dialling(agent)
    history.ended(agent, Pace.NEVER)
    history.listed(gone=frozenset({agent.id}))

    history.listed(replace(agent, incarnation="2"))

    assert history.status(agent).phase is Phase.QUARANTINED


def test_what_left_long_ago_is_forgotten(history: History) -> None:
    """Nothing of it stays."""
    agent, other = history.agent(), history.agent("other")
    history.listed(agent, other)
    history.listed(other, gone=frozenset({agent.id}))

    history.hear(MemoryExpired(history.now + 1))

    assert history.world.records.keys() == {other.id}
    assert history.world.tunnels.keys() == {other.id}


def test_what_left_just_now_is_remembered(history: History) -> None:
    """`show` can tell why an agent went."""
    agent = history.agent()
    history.listed(agent)
    history.listed(gone=frozenset({agent.id}))

    history.hear(MemoryExpired(history.now))

    assert agent.id in history.world.records


def test_an_agent_with_a_worker_is_not_forgotten(history: History) -> None:
    """Somebody has to hear of the worker's end."""
    agent = history.agent()
    history.up(agent)
    history.listed(gone=frozenset({agent.id}))

    history.hear(MemoryExpired(history.now + 1))

    assert agent.id in history.world.records


def test_a_failure_is_told_with_its_own_words(history: History) -> None:
    """The history says why."""
    agent = history.agent()
    history.dialling(agent)

    history.hear(TunnelEnded(agent.id, 1, Failure("unreachable", Pace.SOON, "cannot reach 10.0.0.1:22: refused")))

    assert history.record(agent).history[-1].detail == "cannot reach 10.0.0.1:22: refused"


def test_a_quarantined_agent_without_a_worker_is_shown_as_such_at_once(history: History) -> None:
    """With the reason, and without a next try."""
    first, second = history.agent("first"), history.agent("second")
    history.dialling(first)
    history.ended(first)

    history.listed(first, second)
    history.hear(EvidenceFound(second.id, "1", history.trust()))

    assert [history.status(one).phase for one in (first, second)] == [Phase.QUARANTINED] * 2
    assert history.status(first).retry_at is None
