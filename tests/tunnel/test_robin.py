"""Bulk data makes room for others, and goes at its full pace without them."""

import asyncio
from collections.abc import Callable

import pytest

from tests.tunnel.both_ends import ALL, CONTENT, MIB, Both, opened
from tests.tunnel.ssh_server import until
from tunnelmgr.tunnel import robin as robins
from tunnelmgr.tunnel.robin import RoundRobin, robin_of


class Turns:
    """Counts the loop's turns, and notes in which one somebody went."""

    def __init__(self) -> None:
        self.now = 0
        self.went: list[tuple[str, int]] = []
        self._over = False
        self._count()

    def _count(self) -> None:
        self.now += 1
        if not self._over:
            asyncio.get_running_loop().call_soon(self._count)

    def step(self, name: str) -> Callable[[], None]:
        """Return a step that is noted."""
        return lambda: self.went.append((name, self.now))

    async def all_gone(self, number: int) -> list[str]:
        """Wait until so many have gone; returns their names in order."""
        await until(lambda: len(self.went) == number)
        self._over = True
        return [name for name, _ in self.went]


async def test_alone_all_go_at_once() -> None:
    """Nobody waits for anybody."""
    robin, turns = RoundRobin(), Turns()

    assert [robin.go(turns.step(name)) for name in "abc"] == [True] * 3
    assert await turns.all_gone(3) == ["a", "b", "c"]
    assert len({turn for _, turn in turns.went}) == 1


async def test_in_company_one_goes_a_turn_in_the_order_in_which_they_came() -> None:
    """And whoever comes meanwhile waits behind those who are there."""
    robin, turns = RoundRobin(), Turns()
    robin.company()

    assert [robin.go(turns.step(name)) for name in "abc"] == [True, False, False]
    await asyncio.sleep(0)
    assert not robin.go(turns.step("d"))

    assert await turns.all_gone(4) == ["a", "b", "c", "d"]
    assert len({turn for _, turn in turns.went}) == 4


async def test_company_is_over_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request does not slow a pull for ever; those who wait still have their turns."""
    monkeypatch.setattr(robins, "COMPANY", 0.01)
    robin, turns = RoundRobin(), Turns()
    robin.company()
    assert [robin.go(turns.step(name)) for name in "ab"] == [True, False]
    await until(lambda: len(turns.went) == 2)
    await until(lambda: asyncio.get_running_loop().time() > robin._company)

    assert [robin.go(turns.step(name)) for name in "cd"] == [True, True]
    assert await turns.all_gone(4) == ["a", "b", "c", "d"]


def test_each_loop_has_one_of_its_own() -> None:
    """A loop that ended while somebody waited blocks nobody on the next."""

    async def mine() -> RoundRobin:
        robin = robin_of(asyncio.get_running_loop())
        assert robin is robin_of(asyncio.get_running_loop())
        robin.company()
        robin.go(lambda: None)
        return robin

    assert asyncio.run(mine()) is not asyncio.run(mine())


async def test_an_agent_that_speaks_is_company_and_one_that_pulls_is_none() -> None:
    """A pull's own window adjusts do not hold it back."""
    robin = robin_of(asyncio.get_running_loop())
    async with opened(window=MIB) as both, asyncio.TaskGroup() as tasks:
        both.writer.write(b"a request")
        assert await both.ours.read() == b"a request"
        assert robin._company

        robin._company = 0.0
        company: list[float] = []
        tasks.create_task(both.tap.send(CONTENT), name="source")
        pouring = both.ours.pour(both.tap.stream, len(CONTENT), lambda _: company.append(robin._company))
        carrying = tasks.create_task(pouring, name="pour")
        assert await both.reader.readexactly(len(CONTENT)) == CONTENT
        assert await carrying == len(CONTENT)
        assert set(company) == {0.0}

        both.writer.write(b"another")
        assert await both.ours.read() == b"another"
        assert robin._company


async def test_pulls_in_company_arrive_whole() -> None:
    """Several connections that take turns lose nothing, and wait for nobody who has ended."""

    async def carry(both: Both, more: int) -> bytes:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(both.tap.send(CONTENT[more:]), name="source")
            reading = tasks.create_task(both.reader.read(), name="read")
            await both.ours.pour(both.tap.stream, ALL, lambda _: robin.company())
            both.ours.write_eof()
        return reading.result()

    robin = robin_of(asyncio.get_running_loop())
    async with opened() as one, opened() as other, asyncio.TaskGroup() as tasks:
        robin.company()
        whole = tasks.create_task(carry(one, 0), name="whole")
        rest = tasks.create_task(carry(other, MIB), name="rest")
    assert whole.result() == CONTENT
    assert rest.result() == CONTENT[MIB:]
