"""The share of the event loop that expensive answers may take."""

import asyncio
import time

import pytest
from aiohttp import web

from tests.until import until
from tunnelmgr.control import loop_share
from tunnelmgr.control.loop_share import SLICE, LoopShare


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

    async with share.turn() as turn:
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

    async with share.turn() as turn:
        await turn.in_thread(work, 0.02)

    assert turn.spent >= 0.02
    assert sum(pauses) >= 0.06


async def test_answers_are_made_one_at_a_time() -> None:
    """An answer waits for the turn of those before it."""
    share, order = LoopShare(), list[str]()

    async def answer(name: str) -> None:
        async with share.turn():
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(answer("one"), answer("two"))

    assert order == ["one begins", "one ends", "two begins", "two ends"]


async def test_too_many_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the limit get 503 with a time to try again; a place that becomes free is used."""
    monkeypatch.setattr(loop_share, "MAX_WAITING", 2)
    share, go = LoopShare(), asyncio.Event()

    async def answer() -> None:
        async with share.turn():
            await go.wait()

    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(answer(), name=f"answer {number}")
        await until(lambda: share._waiting == 2)
        with pytest.raises(web.HTTPServiceUnavailable) as refused:
            async with share.turn():
                pass
        go.set()
    async with share.turn():
        pass

    assert refused.value.headers["Retry-After"] == "5"
