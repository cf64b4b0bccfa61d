"""What must be written, and the world that a start continues from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import AgentEnded, RetentionExpired, SeedAdded, TunnelProbed
from tunnelmgr.core.persistence import Changes, StoredState, changes, is_pinned, new_entries, restored
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import HISTORY_LENGTH, Quarantine, World

if TYPE_CHECKING:
    from tests.core.conftest import History


def test_a_new_agent_is_written(history: History) -> None:
    """A new agent is in the changes."""
    agent = history.agent()
    history.listed(agent)

    due = changes(World(), history.world)

    assert due == Changes((history.record(agent),))
    assert due


def test_nothing_is_due_if_nothing_changed(history: History) -> None:
    """A world that was written causes no changes."""
    history.listed(history.agent())

    assert not changes(history.world, history.world)


def test_a_probe_is_not_written(history: History) -> None:
    """A probe causes no changes."""
    agent = history.agent()
    history.up(agent)
    written = history.world

    history.receive(TunnelProbed(agent.id, 1, 0.03))

    assert not changes(written, history.world)


def test_a_forgotten_agent_is_removed(history: History) -> None:
    """An agent that is forgotten is removed from the store."""
    agent = history.agent()
    history.listed(agent)
    written = history.world
    history.listed(gone=frozenset({agent.id}))

    history.receive(RetentionExpired(history.now + 1))

    assert changes(written, history.world) == Changes(forgotten=(agent.id,))


@pytest.mark.parametrize(
    ("method", "kept"), [(Method.CONSOLE, True), (Method.TOFU, True), (Method.PINNED, False), (Method.LABEL, False)]
)
def test_only_evidence_that_can_be_obtained_once_is_believed_at_a_start(
    history: History, method: Method, kept: bool
) -> None:
    """At a start, evidence by repeatable methods is sought again, and what it proved remains the minimum."""
    agent = history.agent()
    history.listed(agent)
    record = replace(history.record(agent), proved=history.trust(method=method))

    world = restored(StoredState({agent.id: record}), now=history.now)

    assert world.records[agent.id].trust == (record.proved if kept else None)
    assert world.records[agent.id].proved == record.proved


def test_evidence_is_pinned_once_it_is_written_for_this_incarnation(history: History) -> None:
    """An agent counts as pinned if a start would continue with the same evidence of the same incarnation."""
    agent = history.agent()
    unknown = history.world
    history.listed(agent)
    listed = history.world
    history.believed(agent)
    record = history.record(agent)
    other = replace(record, proved=history.trust(2))
    rebuilt = replace(record, agent=replace(agent, incarnation="2"))

    assert not is_pinned(unknown, record)
    assert not is_pinned(listed, record)
    assert is_pinned(history.world, record)
    assert not is_pinned(history.world, other)
    assert not is_pinned(history.world, rebuilt)


def test_seeds_are_written_and_removed_with_the_world(history: History) -> None:
    """A seed is written when it is added and when it is used, and removed when it has expired."""
    seed = Seed("one", history.key(), expires=200.0)
    before = history.world
    history.receive(SeedAdded(seed))
    added = history.world

    history.now = 300.0
    history.receive(RetentionExpired(0.0))

    assert changes(before, added) == Changes(seeds=(seed,))
    assert changes(added, history.world) == Changes(spent=("one",))


def test_a_start_restores_the_seeds(history: History) -> None:
    """A start restores the seeds, whose machines may just be booting."""
    seeds = {"one": Seed("one", history.key(), expires=200.0)}

    assert restored(StoredState(seeds=seeds), now=history.now).seeds == seeds


def test_a_start_restores_the_present_agents_before_any_source_answers(history: History) -> None:
    """At a start, agents are present until their source says otherwise."""
    agent = history.agent()
    history.up(agent)

    world = restored(StoredState(history.world.records), now=history.now + 60)

    assert world.records[agent.id].present
    assert world.status(agent.id).phase is Phase.DOWN
    assert world.key_holders == {history.key(): agent.id}


def test_an_agent_that_had_left_stays_away(history: History) -> None:
    """An agent that had left is not present after a restart."""
    agent = history.agent()
    history.listed(agent)
    history.listed(gone=frozenset({agent.id}))

    assert not restored(StoredState(history.world.records), now=history.now).records[agent.id].present


def test_a_quarantine_outlives_a_restart(history: History) -> None:
    """A quarantine is in force after a restart."""
    agent = history.agent()
    history.listed(agent)
    mark = Quarantine(since=1.0, code="host-key-mismatch", message="another key")

    world = restored(StoredState({agent.id: replace(history.record(agent), quarantine=mark)}), now=history.now)

    assert world.status(agent.id).phase is Phase.QUARANTINED
    assert world.status(agent.id).error == "host-key-mismatch"


# --- what was added to the histories ---


def test_new_entries_are_returned_once_and_in_order(history: History) -> None:
    """All entries of a new agent are new, and later only those added since."""
    agent = history.agent()
    before = history.world

    history.believed(agent)
    first = new_entries(before, history.world)
    middle = history.world
    history.receive(AgentEnded("cloud", agent.id, "over"))

    assert [moment.step for _, moment in first] == ["seen", "evidence"]
    assert [(record.agent.id, moment.step) for record, moment in new_entries(middle, history.world)] == [
        (agent.id, "left")
    ]
    assert new_entries(history.world, history.world) == ()


def test_a_history_with_only_new_entries_is_returned_whole(history: History) -> None:
    """If no entry of the earlier history is left, all entries are new."""
    agent = history.agent()
    history.listed(agent)
    before = history.world
    record = history.record(agent)
    for number in range(HISTORY_LENGTH + 1):
        record = record.with_step(history.now, "step", str(number))

    entries = new_entries(before, history.world.with_record(record))

    assert len(entries) == HISTORY_LENGTH
    assert new_entries(before.with_record(replace(history.record(agent), history=())), before)[0][1].step == "seen"
