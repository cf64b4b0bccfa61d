"""What has the loop for too long is seen."""

import asyncio
import time

from tunnelmgr.daemon.loop_lag import INTERVAL, watch_lag


async def test_a_block_of_the_loop_is_reported_as_long_as_it_was_late() -> None:
    """The timer was due in the middle of it."""
    reports: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(watch_lag(reports.append), name="watch")
        await asyncio.sleep(INTERVAL / 2)
        time.sleep(2 * INTERVAL)  # noqa: ASYNC251 - that is what is looked for
        await asyncio.sleep(0.01)
        watch.cancel()

    assert len(reports) == 1
    assert reports[0] >= 1.4 * INTERVAL


async def test_it_goes_on() -> None:
    """A loop that is on time reports next to nothing, again and again, and never less than that."""
    reports: list[float] = []
    enough = asyncio.Event()

    def report(seconds: float) -> None:
        reports.append(seconds)
        if len(reports) == 3:
            enough.set()

    async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
        watch = tasks.create_task(watch_lag(report), name="watch")
        await enough.wait()
        watch.cancel()

    assert min(reports) >= 0
