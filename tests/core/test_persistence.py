"""What has to be written down, and what a start goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import AgentEnded, MemoryExpired, SeedAdded, TunnelProbed
from tunnelmgr.core.persistence import Changes, Memory, changes, is_pinned, moments, restored
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import STORY_LENGTH, Quarantine, World

if TYPE_CHECKING:
    from tests.core.conftest import Story


def test_a_new_agent_is_written(story: Story) -> None:
    """What the store has not seen is due."""
    agent = story.agent()
    story.listed(agent)

    due = changes(World(), story.world)

    assert due == Changes((story.record(agent),))
    assert due


def test_nothing_is_due_where_nothing_changed(story: Story) -> None:
    """The store is left alone."""
    story.listed(story.agent())

    assert not changes(story.world, story.world)


def test_a_probe_is_not_written(story: Story) -> None:
    """What passes by the second would wear the disk for nothing."""
    agent = story.agent()
    story.up(agent)
    written = story.world

    story.hear(TunnelProbed(agent.id, 1, 0.03))

    assert not changes(written, story.world)


def test_a_forgotten_agent_is_removed(story: Story) -> None:
    """The store forgets with the world."""
    agent = story.agent()
    story.listed(agent)
    written = story.world
    story.listed(gone=frozenset({agent.id}))

    story.hear(MemoryExpired(story.now + 1))

    assert changes(written, story.world) == Changes(forgotten=(agent.id,))


@pytest.mark.parametrize(
    ("method", "kept"), [(Method.CONSOLE, True), (Method.TOFU, True), (Method.PINNED, False), (Method.LABEL, False)]
)
def test_only_evidence_that_can_be_had_once_is_believed_at_a_start(story: Story, method: Method, kept: bool) -> None:
    """The rest is asked for again, so that a changed file counts; what it proved is known all the same."""
    agent = story.agent()
    story.listed(agent)
    record = replace(story.record(agent), proved=story.trust(method=method))

    world = restored(Memory({agent.id: record}), now=story.now)

    assert world.records[agent.id].trust == (record.proved if kept else None)
    assert world.records[agent.id].proved == record.proved


def test_evidence_is_pinned_once_it_is_written_for_this_incarnation(story: Story) -> None:
    """An agent is dialled by evidence that a start would go on from, and by no other."""
    agent = story.agent()
    unknown = story.world
    story.listed(agent)
    listed = story.world
    story.believed(agent)
    record = story.record(agent)
    other = replace(record, proved=story.trust(2))
    rebuilt = replace(record, agent=replace(agent, incarnation="2"))

    assert not is_pinned(unknown, record)
    assert not is_pinned(listed, record)
    assert is_pinned(story.world, record)
    assert not is_pinned(story.world, other)
    assert not is_pinned(story.world, rebuilt)


def test_seeds_are_written_and_removed_with_the_world(story: Story) -> None:
    """A seed that is taken is written again, one that has expired goes."""
    seed = Seed("one", story.key(), expires=200.0)
    before = story.world
    story.hear(SeedAdded(seed))
    added = story.world

    story.now = 300.0
    story.hear(MemoryExpired(0.0))

    assert changes(before, added) == Changes(seeds=(seed,))
    assert changes(added, story.world) == Changes(spent=("one",))


def test_a_start_knows_the_seeds(story: Story) -> None:
    """Their machines may be booting right now."""
    seeds = {"one": Seed("one", story.key(), expires=200.0)}

    assert restored(Memory(seeds=seeds), now=story.now).seeds == seeds


def test_a_start_goes_on_with_the_agents_that_were_there_before_any_source_has_answered(story: Story) -> None:
    """A cloud that does not answer costs no tunnel."""
    agent = story.agent()
    story.up(agent)

    world = restored(Memory(story.world.records), now=story.now + 60)

    assert world.records[agent.id].present
    assert world.status(agent.id).phase is Phase.DOWN
    assert world.key_holders == {story.key(): agent.id}


def test_an_agent_that_had_left_stays_away(story: Story) -> None:
    """A restart brings nobody back."""
    agent = story.agent()
    story.listed(agent)
    story.listed(gone=frozenset({agent.id}))

    assert not restored(Memory(story.world.records), now=story.now).records[agent.id].present


def test_a_quarantine_outlives_a_restart(story: Story) -> None:
    """Only a release ends it."""
    agent = story.agent()
    story.listed(agent)
    mark = Quarantine(since=1.0, code="host-key-mismatch", message="another key")

    world = restored(Memory({agent.id: replace(story.record(agent), quarantine=mark)}), now=story.now)

    assert world.status(agent.id).phase is Phase.QUARANTINED
    assert world.status(agent.id).error == "host-key-mismatch"


# --- what was added to the stories ---


def test_each_moment_is_told_once_and_in_order(story: Story) -> None:
    """Whoever writes an audit hears of a new agent wholly, and then of what is new."""
    agent = story.agent()
    before = story.world

    story.believed(agent)
    first = moments(before, story.world)
    middle = story.world
    story.hear(AgentEnded("cloud", agent.id, "over"))

    assert [moment.step for _, moment in first] == ["seen", "evidence"]
    assert [(record.agent.id, moment.step) for record, moment in moments(middle, story.world)] == [(agent.id, "left")]
    assert moments(story.world, story.world) == ()


def test_a_story_that_has_moved_on_wholly_is_told_from_its_beginning(story: Story) -> None:
    """Between two looks at it, more may happen than it keeps."""
    agent = story.agent()
    story.listed(agent)
    before = story.world
    record = story.record(agent)
    for number in range(STORY_LENGTH + 1):
        record = record.told(story.now, "step", str(number))

    told = moments(before, story.world.with_record(record))

    assert len(told) == STORY_LENGTH
    assert moments(before.with_record(replace(story.record(agent), story=())), before)[0][1].step == "seen"
