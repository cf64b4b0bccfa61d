"""What has to be written down, and what a start goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import AgentEnded, RetentionExpired, SeedAdded, TunnelProbed
from tunnelmgr.core.persistence import Changes, StoredState, changes, is_pinned, new_entries, restored
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import HIHISTORY_LENGTH, Quarantine, World

if TYPE_CHECKING:
    from tests.core.conftest import History


def test_a_new_agent_is_written(history: History) -> None:
    """What the store has not seen is due."""
    agent = history.agent()
    history.listed(agent)

    due = changes(World(), history.world)

    assert due == Changes((history.record(agent),))
    assert due


def test_nothing_is_due_where_nothing_changed(history: History) -> None:
    """The store is left alone."""
    history.listed(history.agent())

    assert not changes(history.world, history.world)


def test_a_probe_is_not_written(history: History) -> None:
    """What passes by the second would wear the disk for nothing."""
    agent = history.agent()
    history.up(agent)
    written = history.world

    history.receive(TunnelProbed(agent.id, 1, 0.03))

    assert not changes(written, history.world)


def test_a_forgotten_agent_is_removed(history: History) -> None:
    """The store forgets with the world."""
    agent = history.agent()
    history.listed(agent)
    written = history.world
    history.listed(gone=frozenset({agent.id}))

    history.receive(RetentionExpired(history.now + 1))

    assert changes(written, history.world) == Changes(forgotten=(agent.id,))


@pytest.mark.parametrize(
    ("method", "kept"), [(Method.CONSOLE, True), (Method.TOFU, True), (Method.PINNED, False), (Method.LABEL, False)]
)
def test_only_evidence_that_can_be_had_once_is_believed_at_a_start(
    history: History, method: Method, kept: bool
) -> None:
    """The rest is asked for again, so that a changed file counts; what it proved is known all the same."""
    agent = history.agent()
    history.listed(agent)
    record = replace(history.record(agent), proved=history.trust(method=method))

    world = restored(StoredState({agent.id: record}), now=history.now)

    assert world.records[agent.id].trust == (record.proved if kept else None)
    assert world.records[agent.id].proved == record.proved


def test_evidence_is_pinned_once_it_is_written_for_this_incarnation(history: History) -> None:
    """An agent is dialled by evidence that a start would go on from, and by no other."""
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
    """A seed that is taken is written again, one that has expired goes."""
    seed = Seed("one", history.key(), expires=200.0)
    before = history.world
    history.receive(SeedAdded(seed))
    added = history.world

    history.now = 300.0
    history.receive(RetentionExpired(0.0))

    assert changes(before, added) == Changes(seeds=(seed,))
    assert changes(added, history.world) == Changes(spent=("one",))


def test_a_start_knows_the_seeds(history: History) -> None:
    """Their machines may be booting right now."""
    seeds = {"one": Seed("one", history.key(), expires=200.0)}

    assert restored(StoredState(seeds=seeds), now=history.now).seeds == seeds


def test_a_start_goes_on_with_the_agents_that_were_there_before_any_source_has_answered(history: History) -> None:
    """A cloud that does not answer costs no tunnel."""
    agent = history.agent()
    history.up(agent)

    world = restored(StoredState(history.world.records), now=history.now + 60)

    assert world.records[agent.id].present
    assert world.status(agent.id).phase is Phase.DOWN
    assert world.key_holders == {history.key(): agent.id}


def test_an_agent_that_had_left_stays_away(history: History) -> None:
    """A restart brings nobody back."""
    agent = history.agent()
    history.listed(agent)
    history.listed(gone=frozenset({agent.id}))

    assert not restored(StoredState(history.world.records), now=history.now).records[agent.id].present


def test_a_quarantine_outlives_a_restart(history: History) -> None:
    """Only a release ends it."""
    agent = history.agent()
    history.listed(agent)
    mark = Quarantine(since=1.0, code="host-key-mismatch", message="another key")

    world = restored(StoredState({agent.id: replace(history.record(agent), quarantine=mark)}), now=history.now)

    assert world.status(agent.id).phase is Phase.QUARANTINED
    assert world.status(agent.id).error == "host-key-mismatch"


# --- what was added to the histories ---


def test_each_moment_is_told_once_and_in_order(history: History) -> None:
    """Whoever writes an audit hears of a new agent wholly, and then of what is new."""
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


def test_a_history_that_has_moved_on_wholly_is_told_from_its_beginning(history: History) -> None:
    """Between two looks at it, more may happen than it keeps."""
    agent = history.agent()
    history.listed(agent)
    before = history.world
    record = history.record(agent)
    for number in range(HIHISTORY_LENGTH + 1):
        record = record.with_step(history.now, "step", str(number))

    told = new_entries(before, history.world.with_record(record))

    assert len(told) == HIHISTORY_LENGTH
    assert new_entries(before.with_record(replace(history.record(agent), history=())), before)[0][1].step == "seen"
