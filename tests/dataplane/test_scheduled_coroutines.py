"""Coroutines in the fair queue: each step waits for its turn, and a task otherwise works as any other."""

import asyncio
import contextvars

import pytest

from tests.dataplane.counted_steps import CpuTime, Steps, backlogged
from tunnelmgr.dataplane.fair_queue import SLICE, FairQueue, Share

LOCAL: contextvars.ContextVar[str] = contextvars.ContextVar("LOCAL", default="")


async def test_a_scheduled_coroutine_waits_for_its_turn_at_each_step(cpu: CpuTime) -> None:
    """The tasks of two agents alternate step by step, although neither waits for anything."""
    queue, steps = FairQueue(), Steps(cpu)

    async def work(name: str) -> str:
        for _ in range(4):
            steps.of(name)()
            await asyncio.sleep(0)
        return f"{name} is done"

    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(Share(queue).scheduled(work(name)), name=name) for name in "ab"]
        await steps.until_run(8)

    assert [task.result() for task in both] == ["a is done", "b is done"]
    assert steps.ran in (list("abababab"), list("babababa"))


async def test_a_checkpoint_lets_others_run_once_the_slice_is_used_up(cpu: CpuTime) -> None:
    """A task with checkpoints yields within one slice."""
    queue, steps = FairQueue(), Steps(cpu)

    async def busy(share: Share, name: str) -> None:
        for _ in range(4):
            steps.of(name, SLICE / 2)()
            await share.checkpoint()

    async with asyncio.TaskGroup() as tasks:
        for name in "ab":
            share = Share(queue)
            tasks.create_task(share.scheduled(busy(share, name)), name=name)

    assert "".join(steps.ran) in {"aabbaabb", "bbaabbaa"}


async def test_an_error_passes_through_a_scheduled_coroutine() -> None:
    """An error is raised at the first step and at a later one."""
    queue = FairQueue()

    async def fail(*, late: bool) -> None:
        if late:
            await asyncio.sleep(0)
        raise ZeroDivisionError

    for late in (False, True):
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(Share(queue).scheduled(fail(late=late)), name="fails")
        assert raised.group_contains(ZeroDivisionError)


async def test_a_task_that_waits_for_its_turn_can_be_cancelled(cpu: CpuTime) -> None:
    """A task that is cancelled while it is queued is cancelled at once, and the next step runs."""
    queue, steps = FairQueue(), Steps(cpu)
    share = backlogged(queue)
    cleaned: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(0)
            steps.of(name)()
        finally:
            cleaned.append(name)

    async with asyncio.TaskGroup() as tasks:
        one, _ = (tasks.create_task(share.scheduled(work(name)), name=name) for name in "ab")
        await asyncio.sleep(0)
        backlogged(queue).run(steps.of("uses the slice up"))
        share.enqueue(steps.of("queued"))
        await asyncio.sleep(0)
        one.cancel()
        one.cancel()

    assert one.cancelled()
    assert sorted(cleaned) == ["a", "b"]
    assert "a" not in steps.ran
    assert "b" in steps.ran


async def test_a_deadline_ends_a_wait_for_a_turn() -> None:
    """`asyncio.timeout` works within a scheduled coroutine as in any other."""
    queue = FairQueue()

    async def work() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return "late"
        return "never"

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(Share(queue).scheduled(work()), name="late")

    assert task.result() == "late"


async def test_a_turn_runs_in_the_context_of_its_task(cpu: CpuTime) -> None:
    """Context variables are those of the task, also in a step that waited."""
    queue, steps = FairQueue(), Steps(cpu)
    seen: list[str] = []

    async def work(name: str) -> None:
        LOCAL.set(name)
        for _ in range(2):
            await asyncio.sleep(0)
            steps.of(name)()
            seen.append(LOCAL.get())

    async with asyncio.TaskGroup() as tasks:
        for name in "ab":
            tasks.create_task(Share(queue).scheduled(work(name)), name=name)

    assert seen == steps.ran
    assert LOCAL.get() == ""


async def test_a_scheduled_coroutine_can_be_closed_and_awaited() -> None:
    """One that never runs is closed without a warning; awaited by another coroutine, it is part of that one."""
    queue = FairQueue()

    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    unused = Share(queue).scheduled(work())
    unused.close()

    assert await Share(queue).scheduled(work()) == "done"
