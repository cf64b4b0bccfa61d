"""One timer measures every wait of a task, as `asyncio.timeout` would."""

import asyncio

import pytest

from tests.until import until
from tunnelmgr.deadline import Deadline


async def test_a_wait_that_is_too_long_is_a_timeout() -> None:
    """A wait ends with TimeoutError at its deadline, and the next wait has one of its own."""
    deadline = Deadline()

    for _ in range(2):
        with pytest.raises(TimeoutError), deadline.within(0.01):
            await asyncio.sleep(60)
        with deadline.within(60):
            await asyncio.sleep(0)
    deadline.close()


async def test_a_shorter_wait_after_a_longer_one_ends_in_time() -> None:
    """The timer of an earlier, longer wait does not delay a shorter one, and does not end a later one."""
    deadline = Deadline()

    with deadline.within(60):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError), deadline.within(0.01):
        await asyncio.sleep(60)
    with deadline.within(0.01):
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)  # the timer fires while nothing waits
    with deadline.within(0.01):
        deadline.extend(60)
        await asyncio.sleep(0.03)
    deadline.close()


async def test_a_cancellation_from_outside_stays_one() -> None:
    """A task that is cancelled while it waits ends as cancelled, also if the deadline passes at the same time."""
    deadline, waiting = Deadline(), asyncio.Event()

    async def wait(seconds: float) -> None:
        with deadline.within(seconds):
            waiting.set()
            await asyncio.sleep(60)

    async with asyncio.TaskGroup() as tasks:
        plain = tasks.create_task(wait(60), name="plain")
        await waiting.wait()
        plain.cancel()
        await asyncio.wait([plain])
        waiting.clear()
        both = tasks.create_task(wait(0.0), name="both")
        await waiting.wait()
        deadline._expire()
        both.cancel()
        await asyncio.wait([both])
        deadline.close()
        await until(lambda: plain.cancelled() and both.cancelled())
