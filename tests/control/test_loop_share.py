"""The share of the event loop that expensive answers may take."""

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from tests.until import until
from tunnelmgr.control import loop_share
from tunnelmgr.control.callers import ApiCaller, set_caller
from tunnelmgr.control.loop_share import SLICE, LoopShare

FROM_ONE, FROM_OTHER = (make_mocked_request("GET", "/") for _ in range(2))
set_caller(FROM_ONE, ApiCaller("one"))
set_caller(FROM_OTHER, ApiCaller("other"))


def work(seconds: float) -> None:
    """Use the CPU."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Keep the length of each pause, without taking it."""
    taken: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        taken.append(seconds)
        await sleep(0)

    monkeypatch.setattr(loop_share.asyncio, "sleep", pause)
    return taken


async def test_a_pause_follows_each_slice_by_its_cost(pauses: list[float]) -> None:
    """Three times as long as the work, so that all answers together use a quarter of the loop."""
    share, items = LoopShare(), list(range(2 * SLICE + 1))

    async with share.turn(FROM_ONE) as turn:
        slices = []
        async for part in turn.slices(items):
            slices.append(len(part))
            work(0.002)

    assert slices == [SLICE, SLICE, 1]
    assert all(0.006 <= pause < 0.1 for pause in pauses[:3])
    assert 0.006 <= turn.spent < 0.1


async def test_work_in_a_thread_counts(pauses: list[float]) -> None:
    """The CPU time of a thread holds Python's lock, and so the loop, as well."""
    share = LoopShare()

    async with share.turn(FROM_ONE) as turn:
        await turn.in_thread(work, 0.02)

    assert turn.spent >= 0.02
    assert sum(pauses) >= 0.06


async def test_answers_are_made_one_at_a_time() -> None:
    """An answer waits for the turn of those before it."""
    share, order = LoopShare(), list[str]()

    async def answer(name: str) -> None:
        async with share.turn(FROM_ONE):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(answer("one"), answer("two"))

    assert order == ["one begins", "one ends", "two begins", "two ends"]


async def test_clients_take_turns() -> None:
    """A client with many requests delays another one by a single answer."""
    share, order = LoopShare(), list[str]()

    async def answer(request: web.Request, name: str) -> None:
        async with share.turn(request):
            order.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(answer(FROM_ONE, f"one {number}"), name=f"one {number}")
        await asyncio.sleep(0)
        tasks.create_task(answer(FROM_OTHER, "other"), name="other")

    assert order == ["one 0", "one 1", "other", "one 2", "one 3"]


@pytest.mark.parametrize(("own", "refused"), [(2, True), (3, False)])
async def test_too_many_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch, own: int, *, refused: bool) -> None:
    """A client with too many requests gets 503 with a time to try again; another one waits for its turn."""
    monkeypatch.setattr(loop_share, "MAX_OWN", own)
    share, go, statuses = LoopShare(), asyncio.Event(), list[str]()

    async def answer(request: web.Request) -> None:
        try:
            async with share.turn(request):
                await go.wait()
            statuses.append("answered")
        except web.HTTPServiceUnavailable as busy:
            statuses.append(busy.headers["Retry-After"])

    async with asyncio.TaskGroup() as tasks:
        for number in range(4):
            tasks.create_task(answer(FROM_ONE), name=f"one {number}")
        tasks.create_task(answer(FROM_OTHER), name="other")
        await until(lambda: len(share._turns) == own + 1)
        go.set()

    assert statuses == (["5"] if refused else []) + ["answered"] * (5 - refused)


async def test_the_number_that_wait_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients together may have so many requests waiting."""
    monkeypatch.setattr(loop_share, "MAX_WAITING", 0)
    share = LoopShare()

    async with share.turn(FROM_ONE):
        with pytest.raises(web.HTTPServiceUnavailable):
            async with share.turn(FROM_OTHER):
                pass


async def test_a_client_that_goes_away_while_it_waits_takes_no_turn() -> None:
    """Its turn passes to the next one, also if it was given the turn at the same moment."""
    share, order = LoopShare(), list[str]()

    async def answer(name: str) -> None:
        async with share.turn(FROM_ONE):
            order.append(name)

    for between in (True, False):
        order.clear()
        async with asyncio.TaskGroup() as tasks:
            async with share.turn(FROM_OTHER):
                lost = tasks.create_task(answer("lost"), name="lost")
                tasks.create_task(answer("next"), name="next")
                await until(lambda: len(share._turns) == 2)
                if between:
                    lost.cancel()
            if not between:
                lost.cancel()
        assert order == ["next"]
    async with asyncio.timeout(10), share.turn(FROM_ONE):
        pass
