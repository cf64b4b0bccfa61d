"""Agents that fail again and again: their histories count, and nothing grows with the number of tries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.backoff import MANY, SCHEDULES
from tunnelmgr.core.events import TunnelDialled, TunnelEnded
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.persistence import REPEATS, Changes, changes, new_entries
from tunnelmgr.core.world import HistoryEntry, Quarantine, Record
from tunnelmgr.errors import Pace

if TYPE_CHECKING:
    from tests.core.conftest import History
    from tunnelmgr.core.agent import Agent


def fail(history: History, agent: Agent, why: str = "nobody answers", *, dialled: bool = False) -> None:
    """Let the next try of an agent fail, as soon as it is certainly due."""
    status = history.world.tunnels.get(agent.id)
    history.now += 5 if status is None or status.failures < MANY else SCHEDULES[Pace.SOON].longest + 1
    history.act()
    if dialled:
        history.dialled(agent)
    history.receive(TunnelEnded(agent.id, history.status(agent).life, Failure("unreachable", Pace.SOON, why)))


def last(history: History, agent: Agent, count: int = 1) -> list[tuple[str, int]]:
    """Return the last steps of an agent's history, each with how often it was taken."""
    return [(moment.step, moment.count) for moment in history.record(agent).history[-count:]]


def test_a_repeated_failure_is_one_entry_with_a_count(history: History) -> None:
    """A repeated failure is one entry with its count, its first and its last time, and displaces nothing before it."""
    agent = history.agent()
    history.believed(agent)
    for _ in range(200):
        fail(history, agent)

    moment = history.record(agent).history[-1]
    assert history.steps(agent) == ["seen", "evidence", "failed"]
    assert (moment.count, moment.since, moment.at) == (200, 105.0, history.now)
    assert history.status(agent).failures == 200


def test_another_reason_is_an_entry_of_its_own_at_once(history: History) -> None:
    """A failure with another message is an entry of its own."""
    agent = history.agent()
    history.believed(agent)
    for why in ("nobody answers", "nobody answers", "refused"):
        fail(history, agent, why)

    assert last(history, agent, 2) == [("failed", 2), ("failed", 1)]
    assert history.record(agent).history[-1].detail == "refused"


def test_every_step_of_a_life_that_fails_in_the_same_way_is_counted(history: History) -> None:
    """Each step of a life that fails like the one before is counted and adds no entry."""
    agent = history.agent()
    history.believed(agent)
    for _ in range(17):
        fail(history, agent, "the port is taken", dialled=True)

    assert last(history, agent, 2) == [("dialled", 17), ("failed", 17)]
    assert len(history.record(agent).history) == 4


def test_a_recovery_is_an_entry_at_once_and_later_failures_count_from_one(history: History) -> None:
    """A life that comes up ends the count of failures before it."""
    agent = history.agent()
    history.believed(agent)
    for _ in range(3):
        fail(history, agent)
    history.now += 5
    history.act()
    history.up_again(agent)
    history.receive(TunnelEnded(agent.id, history.status(agent).life, Failure("lost", Pace.SOON, "gone")))
    fail(history, agent)

    assert last(history, agent, 6) == [
        ("failed", 3),
        ("dialled", 1),
        ("bound", 1),
        ("probed", 1),
        ("lost", 1),
        ("failed", 1),
    ]


def test_steps_that_repeat_without_a_failure_are_entries_each_time(history: History) -> None:
    """A step counts as a repetition only if the life before it failed."""
    record = Record(history.agent(), 1.0, 1.0).with_step(1.0, "evidence", "same").with_step(2.0, "evidence", "same")

    assert [moment.count for moment in record.history] == [1, 1]


@pytest.mark.parametrize(("count", "news"), [(1, True), (2, True), (3, False), (4, True), (17, False), (1024, True)])
def test_of_repeated_entries_fewer_and_fewer_are_news(count: int, news: bool) -> None:
    """Of repetitions, the second, fourth, eighth and so on are news, so the log grows with the tries' logarithm."""
    assert HistoryEntry(1.0, "failed", "why", count=count).is_news is news


def test_a_repeated_entry_is_returned_again_with_its_count(history: History) -> None:
    """`new_entries` returns a repeated entry with its count, and no entry that it has returned before."""
    agent = history.agent()
    history.believed(agent)
    for _ in range(2):
        fail(history, agent, dialled=True)
    before = history.world

    fail(history, agent, dialled=True)

    entries = new_entries(before, history.world)
    assert [(moment.step, moment.count) for _, moment in entries] == [("dialled", 3), ("failed", 3)]


def test_repetitions_are_written_once_a_minute_and_everything_else_at_once(history: History) -> None:
    """Repetitions are written once a minute; a quarantine or a new reason is written at once."""
    agent = history.agent()
    history.believed(agent)
    for _ in range(2):
        fail(history, agent, dialled=True)
    written = history.world
    fail(history, agent, dialled=True)
    record = history.record(agent)

    assert not changes(written, history.world)
    for changed in (
        replace(record, changed=written.records[agent.id].changed + REPEATS),
        replace(record, quarantine=Quarantine(1.0, "code", "why")),
        replace(record, proved=history.trust(2)),
        replace(record, possessed=("a key",)),
        replace(record, present=False),
        replace(record, agent=replace(agent, addresses=("10.0.0.9",))),
        record.with_step(history.now, "failed", "another reason"),
        replace(record, history=()),
    ):
        assert changes(history.world.with_record(replace(record, history=())), history.world) == Changes((record,))
        assert changes(written, history.world.with_record(changed)) == Changes((changed,))


def test_an_agent_that_never_answers_is_written_once_a_minute(history: History) -> None:
    """The count on disk of an agent that never answers lags by less than a minute."""
    agent = history.agent()
    history.believed(agent)
    fail(history, agent)
    written, began, writes = history.world, history.now, 0
    while history.now - began < 3 * REPEATS:
        fail(history, agent)
        if changes(written, history.world):
            written, writes = history.world, writes + 1

    assert writes == 3


def test_an_agent_that_shows_its_key_after_failures_is_written(history: History) -> None:
    """A shown key is written at once, because it decides between claims after a restart."""
    agent = history.agent()
    history.believed(agent)
    for _ in range(3):
        fail(history, agent)
    written = history.world
    history.now += 5
    history.act()

    history.receive(TunnelDialled(agent.id, history.status(agent).life, "10.0.0.1", host_key=history.key()))

    assert changes(written, history.world)
