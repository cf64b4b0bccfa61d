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
    Failure,
    FeedHeard,
    MemoryExpired,
    Reconfigured,
    ReleaseRequested,
    RetryRequested,
    Rules,
    SeedAdded,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Phase
from tunnelmgr.core.world import STORY_LENGTH
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import Story

IPV4, IPV6 = Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000)

# --- discovery ---


def test_a_listed_agent_awaits_its_identity(story: Story) -> None:
    """Nothing is dialled before there is evidence."""
    agent = story.agent()

    story.listed(agent)

    assert story.status(agent).phase is Phase.AWAITING_IDENTITY
    assert story.steps(agent) == ["seen"]


def test_an_agent_that_is_listed_again_unchanged_changes_nothing(story: Story) -> None:
    """A poll of a quiet fleet writes nothing."""
    story.listed(story.agent())
    before = story.world.records

    story.listed(story.agent())

    assert story.world.records == before


def test_an_agent_leaves_at_once_when_its_source_says_that_it_has_ended(story: Story) -> None:
    """Terminated means terminated."""
    agent = story.agent()
    story.listed(agent)

    story.listed(gone=frozenset({agent.id}))

    assert not story.record(agent).present
    assert agent.id not in story.world.tunnels


def test_one_listing_that_lacks_an_agent_is_not_its_end(story: Story) -> None:
    """Clouds forget for a moment."""
    agent = story.agent()
    story.listed(agent)

    story.listed()

    assert story.record(agent).present


def test_two_complete_listings_in_a_row_that_lack_an_agent_are_its_end(story: Story) -> None:
    """One of many that is gone without a word goes too."""
    agent, others = story.agent(), [story.agent(f"other-{number}") for number in range(20)]
    story.listed(agent, *others)

    story.listed(*others)
    assert story.record(agent).present
    story.now += 1
    story.listed(*others)

    assert not story.record(agent).present


def test_a_listing_that_has_the_agent_starts_the_count_anew(story: Story) -> None:
    """Lacked, listed, lacked is not twice in a row."""
    agent = story.agent()
    story.listed(agent)

    story.listed()
    story.listed(agent)
    story.listed()

    assert story.record(agent).present


def test_half_an_answer_takes_nobody_away(story: Story) -> None:
    """While something could not be asked, absence means nothing."""
    agent = story.agent()
    story.listed(agent)

    for _ in range(5):
        story.listed(failures=("eu-west-1: throttled",))

    assert story.record(agent).present
    assert not story.record(agent).missed


def test_where_the_list_is_the_truth_one_absence_is_enough(story: Story) -> None:
    """A file does not forget for a moment."""
    agent = story.agent(source="file")
    story.listed(agent, source="file")

    story.listed(source="file", absence_is_proof=True)

    assert not story.record(agent).present


def test_a_source_takes_only_its_own_agents_away(story: Story) -> None:
    """What another source lists is none of its business."""
    agent = story.agent()
    story.listed(agent)

    story.listed(source="file", gone=frozenset({agent.id}), absence_is_proof=True)

    assert story.record(agent).present


def test_the_source_that_had_an_agent_first_keeps_it(story: Story) -> None:
    """Two sources that list one machine do not tear at it."""
    agent = story.agent()
    story.listed(agent)

    story.listed(replace(agent, source="file"), source="file")

    assert story.record(agent).agent == agent


def test_an_agent_that_comes_back_is_believed_as_before(story: Story) -> None:
    """Its pin belongs to its incarnation, which is the same."""
    agent = story.agent()
    story.up(agent)
    story.listed(gone=frozenset({agent.id}))
    story.act()
    story.ended(agent, None)

    story.listed(agent)

    assert story.record(agent).trust == story.trust()
    assert story.status(agent).phase is Phase.DOWN
    assert story.steps(agent)[-1] == "seen"


def test_an_agent_that_comes_back_with_a_key_that_another_has_meanwhile_is_quarantined_with_it(story: Story) -> None:
    """One key on two live agents, however it came about."""
    first, second = story.agent("first"), story.agent("second")
    story.believed(first)
    story.listed(gone=frozenset({first.id}))
    story.believed(second)

    story.listed(first, second)

    assert story.record(first).quarantine is not None
    assert story.record(second).quarantine is not None
    assert story.status(first).error == "host-key-shared"


def test_a_rebuilt_agent_has_to_prove_itself_anew(story: Story) -> None:
    """The same id, another machine."""
    agent = story.agent()
    story.believed(agent)

    story.listed(replace(agent, incarnation="2"))

    assert story.record(agent).trust is None
    assert story.record(agent).spec is None
    assert story.status(agent).phase is Phase.AWAITING_IDENTITY
    assert story.steps(agent)[-1] == "rebuilt"


@pytest.mark.parametrize("facts", [{"addresses": ("10.0.0.9",)}, {"port": 2222}])
def test_an_agent_that_moved_keeps_its_evidence(story: Story, facts: dict[str, object]) -> None:
    """No address says who an agent is."""
    agent = story.agent()
    story.believed(agent)

    story.listed(replace(agent, **facts))  # type: ignore[arg-type]

    spec = story.record(agent).spec
    assert spec is not None
    assert (spec.addresses, spec.port) == (story.record(agent).agent.addresses, story.record(agent).agent.port)
    assert story.steps(agent)[-1] == "moved"


def test_an_agent_without_an_address_has_nothing_to_dial(story: Story) -> None:
    """Evidence alone makes no tunnel."""
    agent = story.agent(addresses=())

    story.believed(agent)

    assert story.record(agent).trust is not None
    assert story.record(agent).spec is None


def test_a_change_of_group_that_asks_for_more_drops_weaker_evidence(story: Story) -> None:
    """The minimum is the group's, and it is the new group's from now on."""
    agent = story.agent()
    story.hear(Reconfigured(replace(story.rules, minimum={"strict": Method.AUTHORITY})))
    story.believed(agent)

    story.listed(replace(agent, group="strict"))

    assert story.record(agent).trust is None


def test_a_source_that_answers_in_part_is_not_well(story: Story) -> None:
    """Status shows what was lacking, and when all was well last."""
    story.listed()
    story.now += 10

    story.listed(failures=("eu-west-1: throttled", "us-east-1: no answer"))

    view = story.world.sources["cloud"]
    assert (view.ok, view.last_success) == (False, 100.0)
    assert view.error == "eu-west-1: throttled; us-east-1: no answer"


def test_a_source_that_fails_keeps_its_agents_and_its_last_success(story: Story) -> None:
    """The last snapshot stays in force."""
    agent = story.agent()
    story.listed(agent)
    story.now += 10

    story.hear(DiscoveryFailed("cloud", "throttled"))

    view = story.world.sources["cloud"]
    assert (view.ok, view.last_success, view.error) == (False, 100.0, "throttled")
    assert story.record(agent).present


def test_a_source_that_recovers_is_well_again(story: Story) -> None:
    """One whole answer is enough."""
    story.hear(DiscoveryFailed("cloud", "throttled"))

    story.listed()

    assert story.world.sources["cloud"].ok
    assert story.world.sources["cloud"].error is None


def test_a_source_that_is_not_configured_tells_nothing(story: Story) -> None:
    """Its answer to a question from before a reload would bring agents that nobody takes away again."""
    before = story.world

    story.listed(story.agent(source="old"), source="old")
    story.hear(DiscoveryFailed("old", "throttled"))

    assert story.world == before


# --- events of a source ---


def test_an_agent_whose_end_an_event_told_is_gone_at_once(story: Story) -> None:
    """Before any poll."""
    agent = story.agent()
    story.listed(agent)

    story.hear(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    assert not story.record(agent).present
    assert story.record(agent).story[-1].detail == "EC2 says terminated"


def test_a_listing_that_lags_behind_does_not_bring_it_back(story: Story) -> None:
    """In the same incarnation, whatever it says."""
    agent = story.agent()
    story.listed(agent)
    story.hear(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    story.listed(agent)

    assert not story.record(agent).present


def test_a_new_incarnation_does_come_back(story: Story) -> None:
    """It is another machine."""
    agent = story.agent()
    story.listed(agent)
    story.hear(AgentEnded("cloud", agent.id, "EC2 says terminated"))

    story.listed(replace(agent, incarnation="2"))

    assert story.record(agent).present


def test_an_event_about_a_stranger_or_from_a_stranger_changes_nothing(story: Story) -> None:
    """Events are late, doubled, and about foreign instances."""
    agent = story.agent()
    story.listed(agent)
    before = story.world

    story.hear(
        AgentEnded("file", agent.id, "not its source"),
        AgentEnded("cloud", story.agent("unknown").id, "unknown"),
        FeedHeard("unknown", None),
    )

    assert story.world is before


def test_how_a_feed_does_is_shown_and_outlives_a_poll(story: Story) -> None:
    """A poll says nothing about it."""
    story.hear(FeedHeard("cloud", "queue is gone"))

    story.listed()

    assert (story.world.sources["cloud"].feed_ok, story.world.sources["cloud"].feed_error) == (False, "queue is gone")


def test_an_agent_that_is_being_rebuilt_is_another_one_from_then_on(story: Story) -> None:
    """Though its id and creation time are the same; and so for each rebuild."""
    agent = story.agent()
    story.believed(agent)

    for _ in range(2):
        story.listed(replace(agent, rebuilding=True))
        story.listed(replace(agent, rebuilding=True))
        story.listed(agent)

    assert story.record(agent).agent.incarnation == "1#2"
    assert story.record(agent).trust is None


# --- configuration ---


def test_agents_of_a_source_that_is_removed_leave(story: Story) -> None:
    """Nobody would notice their end any more."""
    agent = story.agent()
    story.listed(agent)

    story.hear(Reconfigured(Rules(trust={"file": (Method.PINNED,)})))

    assert not story.record(agent).present
    assert story.world.sources.keys() == {"file"}
    assert story.steps(agent) == ["seen", "left"]


def test_evidence_that_the_rules_no_longer_accept_is_dropped(story: Story) -> None:
    """The file decides, for those that are up too."""
    agent = story.agent()
    story.believed(agent)

    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.AUTHORITY,)})))

    assert story.record(agent).trust is None
    assert story.status(agent).phase is Phase.AWAITING_IDENTITY
    assert story.world.key_holders == {}


def test_a_changed_forward_changes_what_every_tunnel_should_be(story: Story) -> None:
    """The plan sees the difference."""
    agent = story.agent()
    story.believed(agent)

    story.hear(Reconfigured(replace(story.rules, forwards=())))

    spec = story.record(agent).spec
    assert spec is not None
    assert spec.forwards == ()


# --- evidence ---


def test_evidence_makes_an_agent_ready_to_be_dialled(story: Story) -> None:
    """It is told with its fingerprint."""
    agent = story.agent()

    story.believed(agent)

    spec = story.record(agent).spec
    assert spec is not None
    assert spec.trust == story.trust()
    assert story.status(agent).phase is Phase.DOWN
    assert story.record(agent).story[-1].detail.startswith("console: SHA256:")


def test_evidence_for_an_earlier_incarnation_is_not_believed(story: Story) -> None:
    """The machine was rebuilt while it was searched for; it is searched for anew."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    story.listed(replace(agent, incarnation="2"))

    story.hear(EvidenceFound(agent.id, "1", story.trust()))

    assert story.record(agent).trust is None
    assert not story.status(agent).working


def test_evidence_that_the_rules_do_not_accept_is_as_good_as_none(story: Story) -> None:
    """It is not asked for again at once, which would bring the same."""
    agent = story.agent()
    story.listed(agent)
    story.act()

    story.hear(EvidenceFound(agent.id, "1", story.trust(method=Method.LABEL)))

    assert story.record(agent).trust is None
    assert story.status(agent).retry_at is not None
    assert story.status(agent).message == "label: is not believed any more"


def test_evidence_once_found_stays(story: Story) -> None:
    """A second word on the same incarnation cannot put another key in the place of the first."""
    agent = story.agent()
    story.believed(agent)

    story.hear(EvidenceFound(agent.id, "1", story.trust(2)))

    assert story.record(agent).trust == story.trust()
    assert story.world.key_holders == {story.key(): agent.id}


def test_evidence_for_an_agent_that_has_left_is_not_kept(story: Story) -> None:
    """Its search is over, and so is its status."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    story.listed(gone=frozenset({agent.id}))

    story.hear(EvidenceFound(agent.id, "1", story.trust()))

    assert story.record(agent).trust is None
    assert agent.id not in story.world.tunnels


def test_a_key_that_another_live_agent_has_quarantines_both(story: Story) -> None:
    """Neither can be told from the other; the message names both and what to do."""
    first, second = story.agent("first"), story.agent("second")
    story.believed(first)

    story.believed(second)

    for one, other in ((first, second), (second, first)):
        mark = story.record(one).quarantine
        assert mark is not None
        assert mark.code == "host-key-shared"
        assert other.id in mark.message
        assert "tunnelmgr release" in mark.message


def test_an_address_used_again_by_another_machine_is_simply_another_agent(story: Story) -> None:
    """No quarantine, no mix-up."""
    old, new = story.agent("old"), story.agent("new")
    story.up(old)

    story.up(new, 2)

    assert story.status(new).phase is Phase.UP
    assert story.record(old).quarantine is None


def test_missing_evidence_is_told_with_its_reason_and_waited_for(story: Story) -> None:
    """`list` says for what, and since when."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    story.now += 5

    story.hear(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    status = story.status(agent)
    assert (status.phase, status.since, status.working) == (Phase.AWAITING_IDENTITY, 100.0, False)
    assert (status.error, status.message) == ("host-key-unknown", "console: no host key block yet")
    assert status.retry_at is not None
    assert story.steps(agent) == ["seen", "waiting"]


def test_the_same_lack_is_told_once(story: Story) -> None:
    """A story of sixty moments is not filled by one wait."""
    agent = story.agent()
    story.listed(agent)

    for _ in range(3):
        story.hear(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert story.steps(agent) == ["seen", "waiting"]
    assert story.status(agent).failures == 3


def test_the_lack_of_evidence_for_an_earlier_incarnation_delays_nothing(story: Story) -> None:
    """The next search is about the machine that is there now, and may begin at once."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    story.listed(replace(agent, incarnation="2"))

    story.hear(EvidenceAbsent(agent.id, "1", "console: no host key block yet"))

    assert not story.status(agent).working
    assert story.status(agent).retry_at is None


def test_word_about_an_unknown_agent_changes_nothing(story: Story) -> None:
    """It may have been forgotten while it was searched for."""
    unknown, before = story.agent("unknown"), story.world

    story.hear(
        EvidenceFound(unknown.id, "1", story.trust()),
        EvidenceAbsent(unknown.id, "1", "nothing"),
        TunnelDialled(unknown.id, 1, "10.0.0.1:22"),
        TunnelEnded(unknown.id, 1, None),
        RetryRequested(unknown.id),
        ReleaseRequested(unknown.id, "none"),
    )

    assert story.world == before


def test_evidence_weaker_than_the_proof_of_before_does_not_count(story: Story) -> None:
    """Whoever spoils the better evidence gains nothing by it."""
    agent = story.agent()
    story.believed(agent)
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.TOFU,)})))

    story.hear(EvidenceFound(agent.id, "1", story.trust(2, Method.TOFU)))

    assert story.record(agent).trust is None
    assert "weaker than console" in story.status(agent).message


def test_evidence_of_another_key_than_the_proof_of_before_quarantines(story: Story) -> None:
    """A key that changes is looked at by a person."""
    agent = story.agent()
    story.believed(agent)
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.AUTHORITY,)})))

    story.hear(EvidenceFound(agent.id, "1", story.trust(2, Method.AUTHORITY)))

    assert story.status(agent).phase is Phase.QUARANTINED
    assert story.status(agent).error == "host-key-mismatch"


def test_what_contradicts_the_evidence_quarantines(story: Story) -> None:
    """Another machine was found where the agent should be."""
    agent = story.agent()
    story.listed(agent)
    story.act()

    story.hear(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    assert story.status(agent).phase is Phase.QUARANTINED
    assert story.status(agent).message == "its certificate is for another agent"


def test_a_quarantine_keeps_its_first_reason(story: Story) -> None:
    """What a person is to look into is what came first; a search that was under way may find more of it."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    story.hear(EvidenceContradicted(agent.id, "1", "its certificate is for another agent"))

    story.hear(EvidenceContradicted(agent.id, "1", "its certificate is for a third one"))

    assert story.status(agent).message == "its certificate is for another agent"
    assert story.steps(agent).count("quarantined") == 1


def test_a_contradiction_of_an_earlier_incarnation_only_ends_the_search(story: Story) -> None:
    """The machine was rebuilt meanwhile."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    story.listed(replace(agent, incarnation="2"))

    story.hear(EvidenceContradicted(agent.id, "1", "another machine"))

    assert story.record(agent).quarantine is None
    assert not story.status(agent).working


def test_a_contradiction_of_an_unknown_agent_changes_nothing(story: Story) -> None:
    """It may have been forgotten."""
    before = story.world

    story.hear(EvidenceContradicted(story.agent("unknown").id, "1", "another machine"))

    assert story.world is before


def seeded(story: Story) -> None:
    """Let the cloud's agents be proved by a seed, and add one."""
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.SEEDED,)})))
    story.hear(SeedAdded(Seed("one", story.key(), expires=200.0)))


def test_a_seed_proves_the_first_agent_that_names_it(story: Story) -> None:
    """And becomes its own."""
    agent = story.agent()
    seeded(story)
    story.listed(agent)
    story.act()

    story.hear(EvidenceFound(agent.id, "1", story.trust(method=Method.SEEDED)))

    assert story.record(agent).trust == story.trust(method=Method.SEEDED)
    assert story.world.seeds["one"].holder == agent.id


def test_a_seed_proves_nobody_else(story: Story) -> None:
    """A second machine that names it has copied it."""
    first, second = story.agent("first"), story.agent("second")
    seeded(story)
    story.listed(first, second)
    story.act()
    story.hear(EvidenceFound(first.id, "1", story.trust(method=Method.SEEDED)))

    story.hear(EvidenceFound(second.id, "1", story.trust(method=Method.SEEDED)))

    assert story.record(second).trust is None
    assert story.record(first).quarantine is None
    assert "its seed was used already" in story.status(second).message


# --- the tunnel's life ---


def test_a_tunnel_is_up_when_a_probe_has_come_back(story: Story) -> None:
    """Not when it was dialled, nor when it was bound."""
    agent = story.agent()
    story.dialling(agent)

    story.hear(TunnelDialled(agent.id, 1, "10.0.0.1:22"), TunnelBound(agent.id, 1, (IPV4, IPV6)))
    before = story.status(agent).phase
    story.hear(TunnelProbed(agent.id, 1, 0.02))

    assert before is Phase.CONNECTING
    assert story.status(agent).phase is Phase.UP
    assert story.status(agent).probe_ms == pytest.approx(20)
    assert story.steps(agent) == ["seen", "evidence", "dialled", "bound", "probed"]


def test_a_later_probe_is_no_news(story: Story) -> None:
    """It moves the time of the last probe and nothing else."""
    agent = story.agent()
    story.up(agent)
    since, steps = story.status(agent).since, story.steps(agent)
    story.now += 15

    story.hear(TunnelProbed(agent.id, 1, 0.03))

    assert story.status(agent).probed_at == story.now
    assert story.status(agent).since == since
    assert story.steps(agent) == steps


def test_binding_again_the_same_is_no_news(story: Story) -> None:
    """A worker that asks again for what it lacks does not fill the story."""
    agent = story.agent()
    story.up(agent)
    before = story.world

    story.hear(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert story.world is before


def test_an_address_that_was_refused_is_named(story: Story) -> None:
    """A host without IPv6 is well all the same."""
    agent = story.agent()
    story.listen = (IPV4,)
    story.up(agent)

    story.hear(TunnelBound(agent.id, 1, (IPV4,), (IPV6,)))

    assert story.record(agent).story[-1].detail == "127.0.0.1:5000; not [::1]:5000"
    assert story.status(agent).error is None


def test_a_squatter_is_shown_on_a_tunnel_that_comes_up_all_the_same(story: Story) -> None:
    """Clients may ask the squatter first, so status must say so."""
    agent = story.agent()
    story.dialling(agent)

    story.hear(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    assert story.status(agent).phase is Phase.UP
    assert story.status(agent).error == "listen-refused"
    assert "[::1]:5000" in story.status(agent).message


def test_a_squatter_that_lets_go_is_shown_no_more(story: Story) -> None:
    """The defect goes with its cause, without a new tunnel."""
    agent = story.agent()
    story.dialling(agent)
    story.hear(TunnelBound(agent.id, 1, (IPV4,), (IPV6,), ("[::1]:5000",)), TunnelProbed(agent.id, 1, 0.02))

    story.hear(TunnelBound(agent.id, 1, (IPV4, IPV6)))

    assert story.status(agent).error is None


def test_a_report_from_an_earlier_life_changes_nothing(story: Story) -> None:
    """A worker of the past neither brings a tunnel up nor ends it."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent)
    story.now += 10
    story.act()
    before = story.world

    story.hear(TunnelProbed(agent.id, 1, 0.02), TunnelEnded(agent.id, 1, None))

    assert story.status(agent).life == 2
    assert story.world is before


def test_a_report_does_not_end_a_search(story: Story) -> None:
    """A search for evidence is no worker, whatever its number."""
    agent = story.agent()
    story.listed(agent)
    story.act()
    before = story.world

    story.hear(TunnelEnded(agent.id, story.status(agent).life, None))

    assert story.world is before


def test_a_failed_dial_is_tried_again_by_the_schedule(story: Story) -> None:
    """The error stays visible while the next try is under way."""
    agent = story.agent()
    story.dialling(agent)

    story.ended(agent)

    status = story.status(agent)
    assert (status.phase, status.failures, status.error) == (Phase.DOWN, 1, "code-soon")
    assert status.retry_at is not None
    assert story.steps(agent)[-1] == "failed"
    story.now = status.retry_at
    story.act()
    assert story.status(agent).error == "code-soon"


def test_failures_in_a_row_are_counted(story: Story) -> None:
    """The schedule depends on them."""
    agent = story.agent()
    story.dialling(agent)

    for _ in range(3):
        story.ended(agent)
        story.now += 10
        story.act()

    assert story.status(agent).failures == 3


def test_a_tunnel_that_was_settled_starts_its_retries_afresh(story: Story) -> None:
    """What stood for long was no failure of before."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent)
    story.now += 10
    story.up(agent)
    story.now += 60

    story.ended(agent)

    assert story.status(agent).failures == 1
    assert story.steps(agent)[-1] == "lost"


def test_a_tunnel_that_was_up_for_a_moment_does_not(story: Story) -> None:
    """One that flaps is held back more each time."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent)
    story.now += 10
    story.up(agent)
    story.now += 1

    story.ended(agent)

    assert story.status(agent).failures == 2


def test_a_failure_that_only_a_person_can_judge_quarantines(story: Story) -> None:
    """No next try, and the reason stays."""
    agent = story.agent()
    story.dialling(agent)

    story.ended(agent, Pace.NEVER)

    status, mark = story.status(agent), story.record(agent).quarantine
    assert (status.phase, status.error, status.retry_at) == (Phase.QUARANTINED, "code-never", None)
    assert mark is not None
    assert mark.message == "it failed, never"
    assert story.steps(agent)[-2:] == ["failed", "quarantined"]


def test_a_worker_that_fails_in_quarantine_leaves_the_reason_for_that_in_place(story: Story) -> None:
    """Nor does it leave a time to try again, at which there would be nothing to do."""
    agent = story.agent()
    story.up(agent)
    story.hear(EvidenceContradicted(agent.id, agent.incarnation, "another key"))

    story.ended(agent)

    assert story.status(agent).error == "host-key-mismatch"
    assert story.status(agent).retry_at is None


def test_an_end_that_was_asked_for_is_no_failure(story: Story) -> None:
    """A revoked tunnel's last cry quarantines nobody."""
    agent = story.agent()
    story.up(agent)
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.AUTHORITY,)})))
    story.act()

    story.ended(agent, Pace.NEVER)

    assert story.record(agent).quarantine is None
    assert (story.status(agent).failures, story.status(agent).retry_at) == (0, None)
    assert story.steps(agent)[-1] == "closed"


def test_a_drained_tunnel_that_breaks_is_closed_too(story: Story) -> None:
    """It was to end anyway."""
    agent = story.agent()
    story.up(agent)
    story.hear(Reconfigured(replace(story.rules, forwards=())))
    story.act()

    story.ended(agent)

    assert story.status(agent).retry_at is None
    assert story.steps(agent)[-1] == "closed"


def test_the_status_of_an_agent_that_has_left_goes_with_its_worker(story: Story) -> None:
    """As long as the worker lives it is counted, and no longer."""
    agent = story.agent()
    story.up(agent)

    story.listed(gone=frozenset({agent.id}))
    while_it_lives = agent.id in story.world.tunnels
    story.ended(agent)

    assert while_it_lives
    assert agent.id not in story.world.tunnels


def test_an_agent_that_has_left_is_shown_as_down_since_it_was_first_seen(story: Story) -> None:
    """`show` can still tell its story."""
    agent = story.agent()
    story.listed(agent)
    story.listed(gone=frozenset({agent.id}))

    assert story.status(agent).phase is Phase.DOWN
    assert story.status(agent).since == 100.0


def test_a_story_keeps_its_latest_moments(story: Story) -> None:
    """The oldest go first."""
    agent = story.agent()
    story.listed(agent)

    for number in range(STORY_LENGTH + 5):
        story.hear(EvidenceAbsent(agent.id, "1", f"reason {number}"))

    told = story.record(agent).story
    assert len(told) == STORY_LENGTH
    assert told[-1].detail == f"reason {STORY_LENGTH + 4}"


def test_evidence_that_may_run_out_is_asked_for_at_each_life(story: Story) -> None:
    """A certificate is good for one tunnel."""
    agent = story.agent()
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.AUTHORITY,)})))
    story.listed(agent)
    story.act()
    story.hear(EvidenceFound(agent.id, "1", story.trust(method=Method.AUTHORITY)))
    story.act()

    story.ended(agent)

    assert story.record(agent).trust is None
    assert story.record(agent).proved == story.trust(method=Method.AUTHORITY)
    assert story.status(agent).phase is Phase.AWAITING_IDENTITY


def test_asking_anew_for_evidence_does_not_hurry_a_dial_that_fails(story: Story) -> None:
    """Each life is held back by the failures of those before, though there was a search between them."""
    agent = story.agent()
    story.hear(Reconfigured(replace(story.rules, trust={"cloud": (Method.AUTHORITY,)})))
    story.listed(agent)

    for _ in range(3):
        story.act()
        story.hear(EvidenceFound(agent.id, "1", story.trust(method=Method.AUTHORITY)))
        story.act()
        story.ended(agent)
        held_back_until = story.status(agent).retry_at
        assert held_back_until is not None
        story.now = held_back_until

    assert story.status(agent).failures == 3


# --- people, and time ---


def test_a_retry_makes_the_next_try_due_now(story: Story) -> None:
    """An operator who has mended the agent need not wait."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent, Pace.SLOW)

    story.hear(RetryRequested(agent.id, uid=1000))

    assert (story.status(agent).retry_at, story.status(agent).failures) == (None, 0)
    assert (story.record(agent).story[-1].step, story.record(agent).story[-1].uid) == ("retry", 1000)


def test_a_retry_of_what_is_under_way_changes_nothing(story: Story) -> None:
    """There is nothing to hurry."""
    agent = story.agent()
    story.dialling(agent)
    before = story.world

    story.hear(RetryRequested(agent.id))

    assert story.world is before


def test_a_release_ends_a_quarantine_and_forgets_the_key(story: Story) -> None:
    """What was believed led there; evidence is asked for anew."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent, Pace.NEVER)

    story.hear(ReleaseRequested(agent.id, "rebuilt by hand", uid=1000))

    record = story.record(agent)
    assert (record.quarantine, record.trust, record.spec) == (None, None, None)
    assert story.status(agent).phase is Phase.AWAITING_IDENTITY
    assert story.world.key_holders == {}
    last = record.story[-1]
    assert (last.step, last.detail, last.uid) == ("released", "rebuilt by hand", 1000)


def test_a_release_of_an_agent_that_is_free_changes_nothing(story: Story) -> None:
    """Its pin stays."""
    agent = story.agent()
    story.believed(agent)
    before = story.world

    story.hear(ReleaseRequested(agent.id, "none"))

    assert story.world is before


def test_a_quarantine_outlives_absence(story: Story) -> None:
    """Going away and coming back is no way out."""
    agent = story.agent()
    story.dialling(agent)
    story.ended(agent, Pace.NEVER)
    story.listed(gone=frozenset({agent.id}))

    story.listed(replace(agent, incarnation="2"))

    assert story.status(agent).phase is Phase.QUARANTINED


def test_what_left_long_ago_is_forgotten(story: Story) -> None:
    """Nothing of it stays."""
    agent, other = story.agent(), story.agent("other")
    story.listed(agent, other)
    story.listed(other, gone=frozenset({agent.id}))

    story.hear(MemoryExpired(story.now + 1))

    assert story.world.records.keys() == {other.id}
    assert story.world.tunnels.keys() == {other.id}


def test_what_left_just_now_is_remembered(story: Story) -> None:
    """`show` can tell why an agent went."""
    agent = story.agent()
    story.listed(agent)
    story.listed(gone=frozenset({agent.id}))

    story.hear(MemoryExpired(story.now))

    assert agent.id in story.world.records


def test_an_agent_with_a_worker_is_not_forgotten(story: Story) -> None:
    """Somebody has to hear of the worker's end."""
    agent = story.agent()
    story.up(agent)
    story.listed(gone=frozenset({agent.id}))

    story.hear(MemoryExpired(story.now + 1))

    assert agent.id in story.world.records


def test_a_failure_is_told_with_its_own_words(story: Story) -> None:
    """The story says why."""
    agent = story.agent()
    story.dialling(agent)

    story.hear(TunnelEnded(agent.id, 1, Failure("unreachable", Pace.SOON, "cannot reach 10.0.0.1:22: refused")))

    assert story.record(agent).story[-1].detail == "cannot reach 10.0.0.1:22: refused"


def test_a_quarantined_agent_without_a_worker_is_shown_as_such_at_once(story: Story) -> None:
    """With the reason, and without a next try."""
    first, second = story.agent("first"), story.agent("second")
    story.dialling(first)
    story.ended(first)

    story.listed(first, second)
    story.hear(EvidenceFound(second.id, "1", story.trust()))

    assert [story.status(one).phase for one in (first, second)] == [Phase.QUARANTINED] * 2
    assert story.status(first).retry_at is None
