"""The deadline of a probe: it ends a wait, and leaves every other end as it is."""

import asyncio

import pytest

from tunnelmgr.errors import ProbeTimeoutError
from tunnelmgr.tunnel.settings import ProbeDeadline


async def test_a_wait_beyond_the_deadline_is_a_probe_timeout() -> None:
    """A wait that takes longer than the deadline raises ProbeTimeoutError, and the task continues."""
    with pytest.raises(ProbeTimeoutError), ProbeDeadline(0.01):
        await asyncio.Event().wait()

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_wait_within_the_deadline_goes_on() -> None:
    """A wait that ends in time is not disturbed, nor is what the task does afterwards."""
    with ProbeDeadline(0.01):
        await asyncio.sleep(0)

    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, later.set)  # after the deadline's end
    await later.wait()


async def test_another_error_within_the_deadline_stays() -> None:
    """An error in the block is raised as it is."""
    with pytest.raises(ConnectionResetError), ProbeDeadline(0.01):
        raise ConnectionResetError


async def test_a_cancellation_stays_a_cancellation() -> None:
    """A task that is cancelled within a deadline is cancelled, also if the deadline ends at the same time."""
    entered = asyncio.Event()

    async def wait() -> None:
        with ProbeDeadline(0.0):
            entered.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(wait(), name="wait")
        await entered.wait()
        task.cancel()

    assert task.cancelled()
