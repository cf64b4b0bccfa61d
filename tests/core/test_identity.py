"""Whose word is believed over time: through changes, restarts, rebuilds and reloads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import (
    AgentEnded,
    EvidenceAbsent,
    EvidenceFound,
    FeedClosed,
    FeedHeard,
    MemoryExpired,
    Reconfigured,
    ReleaseRequested,
    SeedAdded,
)
from tunnelmgr.core.persistence import Memory, changes, restored
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel, SeekEvidence
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import World

if TYPE_CHECKING:
    from tests.core.conftest import Story
    from tunnelmgr.core.agent import Agent


def believing(story: Story, *methods: Method, authorities: tuple[str, ...] = ()) -> None:
    """Let the cloud's agents be proved by these methods."""
    story.rules = replace(story.rules, trust={"cloud": methods}, authorities={"cloud": frozenset(authorities)})
    story.hear(Reconfigured(story.rules))


def proved(story: Story, agent: Agent, method: Method, number: int = 1) -> None:
    """List an agent, search, and find evidence by a method."""
    others = {record.agent for record in story.world.records.values() if record.present and record.agent.id != agent.id}
    story.listed(*others, agent)
    story.act()
    story.hear(EvidenceFound(agent.id, story.record(agent).agent.incarnation, story.trust(number, method)))


def restarted(story: Story) -> None:
    """Begin again with what was written down."""
    due = changes(World(), story.world)
    memory = Memory({record.agent.id: record for record in due.records}, {seed.id: seed for seed in due.seeds})
    story.world = restored(memory, story.now)
    story.hear(Reconfigured(story.rules))


# --- evidence that changes, or weakens ---


@pytest.mark.parametrize("method", [Method.AUTHORITY, Method.LABEL, Method.PINNED])
@pytest.mark.parametrize("restart", [False, True])
def test_another_key_by_the_same_method_quarantines(story: Story, method: Method, restart: bool) -> None:
    """Also where the first was believed before a restart, so that a restart launders nothing."""
    agent = story.agent()
    believing(story, method)
    proved(story, agent, method)
    story.act()
    if restart:
        restarted(story)
    else:
        story.ended(agent)
        story.hear(Reconfigured(replace(story.rules, trust={"cloud": ()})), Reconfigured(story.rules))
    story.now += 1000
    story.act()

    story.hear(EvidenceFound(agent.id, "1", story.trust(2, method)))

    assert story.status(agent).phase is Phase.QUARANTINED
    assert "was proved by" in story.status(agent).message
    assert not [action for action in story.act() if isinstance(action, OpenTunnel)]


@pytest.mark.parametrize("restart", [False, True])
def test_a_weaker_word_does_not_count_after_a_stronger_one(story: Story, restart: bool) -> None:
    """Nobody spoils the certificate to be believed by a label; it is not even asked for."""
    agent = story.agent()
    believing(story, Method.AUTHORITY, Method.LABEL)
    proved(story, agent, Method.AUTHORITY)
    if restart:
        restarted(story)
    else:
        story.act()
        story.ended(agent)
        story.now += 1000
    (search,) = story.act()

    story.hear(EvidenceFound(agent.id, "1", story.trust(1, Method.LABEL)))

    assert isinstance(search, SeekEvidence)
    assert search.at_least is Method.AUTHORITY
    assert story.record(agent).trust is None
    assert "label: is weaker than authority" in story.status(agent).message


def test_a_stronger_word_for_the_same_key_takes_the_weaker_ones_place(story: Story) -> None:
    """From then on it is the measure."""
    agent = story.agent()
    believing(story, Method.LABEL)
    proved(story, agent, Method.LABEL)
    believing(story, Method.AUTHORITY, Method.LABEL)
    story.act()
    story.ended(agent)
    story.now += 1000
    story.act()

    story.hear(EvidenceFound(agent.id, "1", story.trust(1, Method.AUTHORITY)))

    assert story.record(agent).proved == story.trust(1, Method.AUTHORITY)
    assert story.record(agent).quarantine is None


def test_a_release_forgets_the_measure(story: Story) -> None:
    """A person has looked: another key, and a weaker word, may be right."""
    agent = story.agent()
    believing(story, Method.AUTHORITY, Method.LABEL)
    proved(story, agent, Method.AUTHORITY)
    story.act()
    story.ended(agent)
    story.now += 1000
    story.act()
    story.hear(EvidenceFound(agent.id, "1", story.trust(2, Method.AUTHORITY)))

    story.hear(ReleaseRequested(agent.id, "reinstalled"))
    proved(story, agent, Method.LABEL, 2)

    assert story.record(agent).trust == story.trust(2, Method.LABEL)


# --- seeds ---


def seeded(story: Story, expires: float = 200.0) -> Seed:
    """Believe seeds, and add one."""
    believing(story, Method.SEEDED)
    seed = Seed("one", story.key(), expires)
    story.hear(SeedAdded(seed))
    return seed


def test_a_seed_is_for_one_incarnation(story: Story) -> None:
    """A rebuilt server runs what somebody has put there since."""
    agent = story.agent()
    seeded(story)
    proved(story, agent, Method.SEEDED)
    rebuilt = replace(agent, incarnation="2")

    proved(story, rebuilt, Method.SEEDED)

    assert story.record(agent).trust is None
    assert story.world.seeds["one"].incarnation == "1"
    assert "its seed was used already" in story.status(agent).message


def test_a_seed_stays_taken_through_a_restart(story: Story) -> None:
    """Its holder is believed at once, and nobody else ever."""
    agent, thief = story.agent("a"), story.agent("b")
    seeded(story)
    proved(story, agent, Method.SEEDED)

    restarted(story)
    proved(story, thief, Method.SEEDED)

    assert story.record(agent).trust == story.trust(1, Method.SEEDED)
    assert story.record(thief).trust is None
    assert story.record(agent).quarantine is None


def test_a_seed_that_nobody_took_in_time_is_forgotten(story: Story) -> None:
    """At the next look round; and then it proves nobody."""
    seeded(story, expires=150.0)
    story.hear(MemoryExpired(0.0))
    before = dict(story.world.seeds)
    story.now = 150.0

    story.hear(MemoryExpired(0.0))
    proved(story, story.agent(), Method.SEEDED)

    assert list(before) == ["one"]
    assert story.world.seeds == {}
    assert "its seed was used already, or has expired" in story.status(story.agent()).message


def test_a_seed_is_remembered_as_long_as_its_holder(story: Story) -> None:
    """Also beyond the time in which it had to be taken."""
    agent = story.agent()
    seeded(story, expires=150.0)
    proved(story, agent, Method.SEEDED)
    story.now = 500.0
    story.hear(MemoryExpired(400.0))
    kept = dict(story.world.seeds)
    story.listed(gone=frozenset({agent.id}))
    story.hear(MemoryExpired(600.0))
    story.act()

    assert list(kept) == ["one"]
    assert story.world.seeds == {}


def test_a_release_lets_the_holder_use_its_seed_again(story: Story) -> None:
    """It is the same machine."""
    agent = story.agent()
    seeded(story)
    proved(story, agent, Method.SEEDED)
    story.act()
    story.hear(AgentEnded("file", agent.id, "of no concern"))
    twin = story.agent("twin", source="file")
    story.listed(twin, source="file")
    story.hear(EvidenceFound(twin.id, "1", story.trust(1, Method.PINNED)))

    story.listed(gone=frozenset({twin.id}), source="file")
    story.hear(ReleaseRequested(agent.id, "the twin is gone"))
    proved(story, agent, Method.SEEDED)

    assert story.record(agent).trust == story.trust(1, Method.SEEDED)


# --- rebuilding ---


def test_a_machine_that_is_being_rebuilt_is_left_alone(story: Story) -> None:
    """Its tunnel is revoked, and it is neither searched nor dialled until it runs again."""
    agent = story.agent()
    story.up(agent)
    proved(story, story.agent("other"), Method.CONSOLE, 2)

    story.listed(replace(agent, rebuilding=True), story.agent("other"))
    closing = story.act()[0]
    story.ended(agent, None)
    while_rebuilding = [action for action in story.act() if getattr(action, "agent", None) == agent]
    story.listed(agent, story.agent("other"))
    afterwards = [action for action in story.act() if isinstance(action, SeekEvidence)]

    assert isinstance(closing, CloseTunnel)
    assert closing.manner is Manner.REVOKE
    assert while_rebuilding == []
    assert [search.agent.incarnation for search in afterwards] == ["1#1"]
    assert afterwards[0].at_least is None


def test_the_key_from_before_a_rebuild_proves_nothing(story: Story) -> None:
    """An answer that was under way meanwhile is about the old machine."""
    agent = story.agent()
    believing(story, Method.TOFU)
    story.listed(agent)
    story.act()
    story.listed(replace(agent, rebuilding=True))

    story.hear(EvidenceFound(agent.id, "1", story.trust(1, Method.TOFU)))
    story.hear(EvidenceAbsent(agent.id, "1", "nothing"))

    assert story.record(agent).trust is None
    assert story.record(agent).agent.incarnation == "1#1"


def test_rebuilds_are_counted_through_a_restart(story: Story) -> None:
    """Else a server rebuilt while the controller was away would be believed by its old pin."""
    agent = story.agent()
    believing(story, Method.TOFU)
    proved(story, agent, Method.TOFU)
    story.listed(replace(agent, rebuilding=True))
    story.listed(agent)

    restarted(story)
    story.listed(agent)
    story.listed(replace(agent, rebuilding=True))

    assert story.record(agent).agent.incarnation == "1#2"


# --- events ---


def test_an_event_revokes_the_tunnel_and_a_listing_that_lags_does_not_bring_it_back(story: Story) -> None:
    """Not even through a restart."""
    agent = story.agent()
    story.up(agent)

    story.hear(AgentEnded("cloud", agent.id, "EC2 says that it is terminated"))
    (closing,) = story.act()
    story.ended(agent, None)
    story.listed(agent)
    restarted(story)
    story.listed(agent)

    assert isinstance(closing, CloseTunnel)
    assert closing.manner is Manner.REVOKE
    assert not story.record(agent).present
    assert story.act() == ()


def test_the_same_event_twice_is_one(story: Story) -> None:
    """SQS delivers at least once."""
    agent = story.agent()
    story.listed(agent)
    story.hear(AgentEnded("cloud", agent.id, "over"))
    before = story.world

    story.hear(AgentEnded("cloud", agent.id, "over"))

    assert story.world is before


def test_a_feed_that_is_closed_is_shown_no_more(story: Story) -> None:
    """Its last failure would be shown for ever."""
    story.hear(FeedHeard("cloud", "the queue is gone"))

    story.hear(FeedClosed("cloud"))

    view = story.world.sources["cloud"]
    assert (view.feed_ok, view.feed_error) == (None, None)


# --- authorities ---


def test_a_change_of_authorities_has_every_certificate_looked_at_again(story: Story) -> None:
    """What was taken back must not stand on a tunnel until that ends by itself."""
    agent, pinned = story.agent(), story.agent("pinned", source="file")
    believes = {"cloud": frozenset({"ca"}), "file": frozenset({"ca"})}
    methods = {"cloud": (Method.AUTHORITY,), "file": (Method.PINNED,)}
    story.rules = replace(story.rules, trust=methods, authorities=believes)
    story.hear(Reconfigured(story.rules))
    story.listed(pinned, source="file")
    story.hear(EvidenceFound(pinned.id, "1", story.trust(2, Method.PINNED)))
    proved(story, agent, Method.AUTHORITY)
    story.act()

    story.hear(Reconfigured(replace(story.rules, authorities=dict.fromkeys(believes, frozenset({"ca but not 7"})))))

    (closing,) = story.act()
    assert isinstance(closing, CloseTunnel)
    assert (closing.agent, closing.manner) == (agent.id, Manner.REVOKE)
    assert story.record(agent).trust is None
    assert story.record(pinned).trust == story.trust(2, Method.PINNED)


@pytest.mark.parametrize(
    "authorities",
    [
        {"cloud": frozenset({"ca"})},
        {"cloud": frozenset({"ca", "next"})},
        {"cloud": frozenset({"ca"}), "file": frozenset({"other"})},
    ],
)
def test_an_authority_that_is_added_or_anothers_disturbs_nobody(
    story: Story, authorities: dict[str, frozenset[str]]
) -> None:
    """No certificate that was good can be bad by it, so no transfer is broken off to see."""
    agent = story.agent()
    believing(story, Method.AUTHORITY, authorities=("ca",))
    proved(story, agent, Method.AUTHORITY)
    story.act()

    story.hear(Reconfigured(replace(story.rules, authorities=authorities)))

    assert story.act() == ()


# --- no hot loop ---


def test_a_dial_that_always_fails_is_held_back_more_and_more(story: Story) -> None:
    """Though the certificate is asked for before each, and found each time."""
    agent = story.agent()
    believing(story, Method.AUTHORITY)
    story.listed(agent)
    dials, waits = 0, []

    while dials < 8:
        actions = story.act()
        if any(isinstance(action, SeekEvidence) for action in actions):
            story.hear(EvidenceFound(agent.id, "1", story.trust(1, Method.AUTHORITY)))
        elif actions:
            dials += 1
            story.ended(agent)
            due = story.status(agent).retry_at
            assert due is not None
            waits.append(due - story.now)
        else:
            due = story.status(agent).retry_at
            assert due is not None
            assert due > story.now
            story.now = due

    assert min(waits) > 0
    assert waits[-1] > 4 * waits[0]
    assert story.status(agent).failures == 8


def test_evidence_of_no_use_is_asked_for_more_and_more_slowly(story: Story) -> None:
    """A method that keeps answering what may not be believed does not keep the loop busy."""
    agent = story.agent()
    believing(story, Method.AUTHORITY, Method.LABEL)
    proved(story, agent, Method.AUTHORITY)
    story.act()
    story.ended(agent)
    waits = []

    for _ in range(5):
        story.now = story.status(agent).retry_at or story.now
        story.act()
        story.hear(EvidenceFound(agent.id, "1", story.trust(1, Method.LABEL)))
        due = story.status(agent).retry_at
        assert due is not None
        waits.append(due - story.now)

    assert min(waits) > 1
    assert waits == sorted(waits) or waits[-1] > waits[0]


def test_a_release_lets_a_weaker_word_count_where_nothing_stronger_is_asked_any_more(story: Story) -> None:
    """Whoever changes a source to a weaker method on purpose is not stuck: releasing says that it is meant."""
    agent = story.agent()
    story.believed(agent)
    believing(story, Method.TOFU)
    stuck = story.world.records[agent.id].held_back

    story.hear(ReleaseRequested(agent.id, "meant so"))
    story.act()
    story.hear(EvidenceFound(agent.id, agent.incarnation, story.trust(1, Method.TOFU)))

    assert stuck
    assert story.world.records[agent.id].trust == story.trust(1, Method.TOFU)
