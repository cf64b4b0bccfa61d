"""What has to be written down, and what a start goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.changes import Changes, changes, pin_of, restored
from tunnelmgr.core.events import MemoryExpired, TunnelProbed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import Quarantine, World

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


@pytest.mark.parametrize(("method", "kept"), [(Method.CONSOLE, True), (Method.TOFU, True), (Method.PINNED, False)])
def test_only_evidence_that_can_be_had_once_becomes_a_pin(story: Story, method: Method, kept: bool) -> None:
    """The rest is asked for again, so that a changed file counts."""
    agent = story.agent()
    story.listed(agent)
    record = replace(story.record(agent), trust=story.trust(method=method))

    assert pin_of(record) == ((method.value, (story.key(),)) if kept else None)


def test_without_evidence_there_is_no_pin(story: Story) -> None:
    """Nothing known, nothing pinned."""
    agent = story.agent()
    story.listed(agent)

    assert pin_of(story.record(agent)) is None


def test_a_start_goes_on_with_the_agents_that_were_there_before_any_source_has_answered(story: Story) -> None:
    """A cloud that does not answer costs no tunnel."""
    agent = story.agent()
    story.up(agent)

    world = restored(story.world.records, now=story.now + 60)

    assert world.records[agent.id].present
    assert world.status(agent.id).phase is Phase.DOWN
    assert world.key_holders == {story.key(): agent.id}


def test_an_agent_that_had_left_stays_away(story: Story) -> None:
    """A restart brings nobody back."""
    agent = story.agent()
    story.listed(agent)
    story.listed(gone=frozenset({agent.id}))

    assert not restored(story.world.records, now=story.now).records[agent.id].present


def test_a_quarantine_outlives_a_restart(story: Story) -> None:
    """Only a release ends it."""
    agent = story.agent()
    story.listed(agent)
    mark = Quarantine(since=1.0, code="host-key-mismatch", message="another key")

    world = restored({agent.id: replace(story.record(agent), quarantine=mark)}, now=story.now)

    assert world.status(agent.id).phase is Phase.QUARANTINED
    assert world.status(agent.id).error == "host-key-mismatch"
