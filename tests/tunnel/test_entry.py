"""Who may dial now: a few at a time, the newest first, and everybody in the end."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from tests.tunnel.ssh_server import until
from tunnelmgr.tunnel import entry as entries
from tunnelmgr.tunnel.entry import AT_ONCE, ELDER, MOST, Entry, Turn


@dataclass
class Crowd:
    """Dials that wait at one door, and the order in which they were let in."""

    entry: Entry = field(default_factory=Entry)
    turns: dict[float, Turn] = field(default_factory=dict)
    order: list[float] = field(default_factory=list)

    async def come(self, seen: float) -> None:
        """Wait, and stay inside."""
        self.turns[seen] = await self.entry.turn(seen)
        self.order.append(seen)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody let in but by those who leave."""
    monkeypatch.setattr(entries, "PACE", 1000.0)


@pytest.mark.usefixtures("slow")
async def test_a_few_are_let_in_at_once_and_the_rest_one_by_one() -> None:
    """Who leaves lets the next one in; leaving twice is leaving once."""
    crowd = Crowd()
    async with asyncio.TaskGroup() as tasks:
        for number in range(AT_ONCE + 3):
            tasks.create_task(crowd.come(float(number)), name=f"{number}")
        await until(lambda: len(crowd.turns) == AT_ONCE)
        await asyncio.sleep(0.01)
        assert len(crowd.turns) == AT_ONCE

        for left in range(3):
            crowd.turns[crowd.order[left]].end()
            crowd.turns[crowd.order[left]].end()
            await until(lambda left=left: len(crowd.turns) == AT_ONCE + left + 1)
    assert crowd.entry._inside == AT_ONCE


@pytest.mark.usefixtures("slow")
async def test_the_newest_goes_first_and_now_and_then_the_one_that_has_waited_longest() -> None:
    """A build waits for the newest; nobody waits for ever."""
    crowd = Crowd()
    inside = [await crowd.entry.turn(0.0) for _ in range(AT_ONCE)]
    async with asyncio.TaskGroup() as tasks:
        for number in range(1, 9):
            tasks.create_task(crowd.come(float(number)), name=f"{number}")
        await asyncio.sleep(0)
        for count in range(8):
            (inside.pop() if inside else crowd.turns[crowd.order[count - AT_ONCE]]).end()
            await until(lambda count=count: len(crowd.order) == count + 1)

    assert ELDER == 4
    assert crowd.order == [8.0, 7.0, 6.0, 1.0, 5.0, 4.0, 3.0, 2.0]


@pytest.mark.usefixtures("slow")
async def test_one_that_gives_up_takes_no_place() -> None:
    """Neither while it waits nor at the moment when it is let in."""
    entry = Entry()
    inside = [await entry.turn(0.0) for _ in range(AT_ONCE)]
    async with asyncio.TaskGroup() as tasks:
        waiting, let_in, last = (tasks.create_task(entry.turn(seen), name="wait") for seen in (1.0, 2.0, 0.5))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        inside.pop().end()
        let_in.cancel()  # its turn has come, and it has not been told yet
        turn = await last
    for each in (*inside, turn):
        each.end()
    assert entry._inside == 0
    assert entry._waiting == []


async def test_while_the_loop_has_time_more_are_let_in_up_to_the_most() -> None:
    """Where the network is what takes the time, a fleet need not wait for it one after another."""
    crowd = Crowd()
    async with asyncio.TaskGroup() as tasks:
        coming = [tasks.create_task(crowd.come(float(number)), name=f"{number}") for number in range(MOST + 5)]
        await until(lambda: len(crowd.turns) == MOST)
        await asyncio.sleep(3 * entries.PACE)
        assert len(crowd.turns) == MOST
        for task in coming:
            task.cancel()


async def test_a_busy_loop_lets_in_no_more_than_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """And fewer than before, until no more than the least are inside."""
    monkeypatch.setattr(entries, "LATE", -1.0)  # any loop is late
    crowd = Crowd()
    async with asyncio.TaskGroup() as tasks:
        coming = [tasks.create_task(crowd.come(float(number)), name=f"{number}") for number in range(AT_ONCE + 5)]
        await asyncio.sleep(5 * entries.PACE)
        assert len(crowd.turns) == AT_ONCE
        crowd.entry._inside += 1  # as if one more had been let in before
        crowd.turns[0.0].end()
        await asyncio.sleep(0)
        assert len(crowd.turns) == AT_ONCE
        crowd.turns[1.0].end()
        await until(lambda: len(crowd.turns) == AT_ONCE + 1)
        for task in coming:
            task.cancel()


async def test_what_keeps_the_loop_is_seen() -> None:
    """Something that computes for long makes it late."""
    entry = Entry()
    turns = [await entry.turn(0.0) for _ in range(AT_ONCE)]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(entry.turn(1.0), name="wait")
        await asyncio.sleep(0)
        time.sleep(entries.PACE + 4 * entries.LATE)  # noqa: ASYNC251 - what is tested
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert entry._busy
        for turn in turns:
            turn.end()
        (await waiting).end()
