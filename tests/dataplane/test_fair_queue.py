"""The fair queue: which share runs first, for how long, and what a task notices of it."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataplane.counted_steps import CpuTime, Steps, backlogged
from tunnelmgr.dataplane import fair_queue as module
from tunnelmgr.dataplane.fair_queue import HARD_LIMIT, QUANTUM, REFILL, SLICE, FairQueue, Share, fair_queue


async def test_a_step_runs_at_once_while_the_slice_lasts(cpu: CpuTime) -> None:
    """The steps of a sole agent wait only for the end of a slice."""
    queue, steps = FairQueue(), Steps(cpu)
    share = backlogged(queue)

    assert share.run(steps.of("first", SLICE / 2))
    assert share.run(steps.of("second", SLICE / 2))
    assert not share.run(steps.of("third"))

    await steps.until_run(3)
    assert steps.ran == ["first", "second", "third"]


async def test_a_sparse_share_goes_before_those_with_a_backlog(cpu: CpuTime) -> None:
    """A small request is served before the steps of those that always have some waiting, however many they are.

    It may have used more CPU time than each of them: a hundred that flood get a hundredth each.
    """
    queue, steps = FairQueue(), Steps(cpu)
    for number in range(100):
        share = backlogged(queue)
        for _ in range(2):
            share.enqueue(steps.of(f"heavy {number}"))
    await steps.until_run(50)

    light = Share(queue)
    light.charge(QUANTUM / 2)
    before = len(steps.ran)
    for _ in range(3):
        light.run(steps.of("light", 0.0001))
    await steps.until_run(before + 3)

    assert steps.ran[before : before + 3] == ["light"] * 3


async def test_among_shares_with_a_backlog_the_least_cpu_time_goes_first(cpu: CpuTime) -> None:
    """An agent that has just started to flood goes before one that has flooded for long."""
    queue, steps = FairQueue(), Steps(cpu)
    old, young = backlogged(queue), backlogged(queue)
    old.charge(1.0)
    for _ in range(3):
        old.enqueue(steps.of("old"))
        young.enqueue(steps.of("young"))

    await steps.until_run(6)

    assert steps.ran == ["young"] * 3 + ["old"] * 3


async def test_what_was_used_out_of_credit_does_not_count_later(cpu: CpuTime) -> None:
    """An agent that has had small requests for hours is served no later than those that connect and flood at once."""
    queue, steps = FairQueue(), Steps(cpu)
    old = Share(queue)
    for _ in range(1000):
        old.run(steps.of("small", QUANTUM / 2))
        cpu.clock += QUANTUM / REFILL
        await asyncio.sleep(0)
    new = [backlogged(queue) for _ in range(3)]
    for share in new:
        for _ in range(10):
            share.enqueue(steps.of("flood"))

    before = len(steps.ran)
    old.enqueue(steps.of("old", QUANTUM))  # exhausts its credit
    for _ in range(3):
        old.enqueue(steps.of("old"))
    await steps.until_run(before + 34)

    assert steps.ran[before] == "old"
    assert steps.ran[before : before + 16].count("old") == 4


async def test_among_sparse_shares_the_most_credit_goes_first(cpu: CpuTime) -> None:
    """Of agents with occasional requests, the one that has used least in the last moments goes first."""
    queue, steps = FairQueue(), Steps(cpu)
    busy, quiet = Share(queue), Share(queue)
    busy.charge(QUANTUM / 2)
    for _ in range(2):
        busy.enqueue(steps.of("busy", QUANTUM / 100))
        quiet.enqueue(steps.of("quiet", QUANTUM / 100))

    await steps.until_run(4)

    assert steps.ran == ["quiet", "quiet", "busy", "busy"]


async def test_credit_comes_back_slowly_and_only_while_nothing_waits(cpu: CpuTime) -> None:
    """A share that uses less than a tenth of the time stays sparse; one that floods gains no credit by waiting."""
    queue, steps = FairQueue(), Steps(cpu)
    flooding, now_and_then = backlogged(queue), Share(queue)
    for _ in range(3):
        flooding.enqueue(steps.of("flood"))
        cpu.clock += 1000.0
    await steps.until_run(1)
    assert not flooding.sparse

    for _ in range(100):
        now_and_then.run(steps.of("small", 0.001))
        await steps.until_run(len(steps.ran))
        cpu.clock += 0.0011 / REFILL
        await asyncio.sleep(0)
    assert now_and_then.sparse
    now_and_then.rest(cpu.clock + 1000.0, 0.0)
    assert now_and_then.credit == QUANTUM


async def test_an_iteration_of_the_loop_runs_waiting_steps_for_one_slice(cpu: CpuTime) -> None:
    """Sockets and timers are polled between two slices, even if the queue is never empty."""
    queue, steps = FairQueue(), Steps(cpu)
    for number in range(8):
        Share(queue).enqueue(steps.of(str(number), SLICE / 2))

    await steps.until_run(8)

    per_iteration = [steps.iterations.count(iteration) for iteration in set(steps.iterations)]
    assert max(per_iteration) == 2


async def test_shares_that_flood_get_equal_cpu_time(cpu: CpuTime) -> None:
    """A share with long steps gets fewer of them."""
    queue, steps = FairQueue(), Steps(cpu)
    long, short = backlogged(queue), backlogged(queue)
    for _ in range(40):
        long.enqueue(steps.of("long", 4 * SLICE))
    for _ in range(160):
        short.enqueue(steps.of("short", SLICE))

    await steps.until_run(100)

    assert steps.ran[:100].count("short") == pytest.approx(80, abs=4)


async def test_idle_time_is_not_saved_up(cpu: CpuTime) -> None:
    """A share that was idle for long goes first for `QUANTUM` seconds, and then takes turns."""
    queue, steps = FairQueue(), Steps(cpu)
    busy, idle = backlogged(queue), Share(queue)
    for _ in range(200):
        busy.enqueue(steps.of("busy"))
    await steps.until_run(100)
    cpu.clock += 1000.0

    for _ in range(50):
        idle.enqueue(steps.of("idle"))
    await steps.until_run(150)

    first_busy = steps.ran.index("busy", 100)
    assert first_busy - 100 <= QUANTUM / SLICE + 2
    assert abs(steps.ran[first_busy:150].count("busy") - steps.ran[first_busy:150].count("idle")) <= 12


async def test_a_sparse_share_may_overrun_the_slice_up_to_a_limit(cpu: CpuTime) -> None:
    """A small request does not wait for the next iteration, unless this one has taken too long already."""
    queue, steps = FairQueue(), Steps(cpu)
    busy, light, late = backlogged(queue), Share(queue), Share(queue)

    assert busy.run(steps.of("busy", SLICE))
    assert not busy.run(steps.of("busy"))
    assert light.run(steps.of("light", HARD_LIMIT))
    assert not late.run(steps.of("late"))
    await steps.until_run(4)
    assert steps.ran == ["busy", "light", "late", "busy"]


async def test_a_step_is_out_of_time_by_its_share(cpu: CpuTime) -> None:
    """A sparse step is out of time after a slice of its own, any other also with the iteration's slice."""
    queue = FairQueue()
    answers: list[bool] = []

    def check_after(seconds: float) -> Callable[[], None]:
        def step() -> None:
            cpu.now += seconds
            answers.append(queue.is_out_of_time())

        return step

    backlogged(queue).run(check_after(SLICE / 2))
    backlogged(queue).run(check_after(SLICE * 0.6))
    Share(queue).run(check_after(SLICE / 2))
    Share(queue).run(check_after(SLICE))

    assert answers == [False, True, False, True]
    assert queue.is_out_of_time()
    assert Share(queue).is_out_of_time()


async def test_steps_of_one_share_keep_their_order(cpu: CpuTime) -> None:
    """A step never overtakes a waiting step of the same share."""
    queue, steps = FairQueue(), Steps(cpu)
    share = Share(queue)
    for name in "abcdef":
        share.run(steps.of(name))

    await steps.until_run(6)

    assert steps.ran == list("abcdef")


async def test_a_step_that_queues_the_next_one_runs_it_once(cpu: CpuTime) -> None:
    """A step may enqueue its successors, and each runs once."""
    queue, steps = FairQueue(), Steps(cpu)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    share = Share(queue)

    def first() -> None:
        steps.of("first")()
        share.enqueue(steps.of("second"))
        share.enqueue(steps.of("third"))

    share.enqueue(first)
    await steps.until_run(3)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert steps.ran == ["first", "second", "third"]
    assert errors == []


async def test_a_step_within_a_step_is_charged_once(cpu: CpuTime) -> None:
    """A step that another step causes runs within it, and is charged to the outer share."""
    queue, steps = FairQueue(), Steps(cpu)
    outer, inner = Share(queue), Share(queue)

    outer.run(lambda: inner.run(steps.of("inner", SLICE / 4)))

    assert steps.ran == ["inner"]
    assert outer.credit == pytest.approx(QUANTUM - SLICE / 4)
    assert inner.credit == QUANTUM


async def test_a_deferred_action_follows_the_step_and_is_part_of_it(cpu: CpuTime) -> None:
    """A deferred action runs at the end of the step and is charged to it; without a step nothing can be deferred."""
    queue, steps = FairQueue(), Steps(cpu)
    share = Share(queue)

    def step() -> None:
        assert share.defer(steps.of("deferred", SLICE / 4))
        steps.of("step", SLICE / 4)()

    share.run(step)

    assert steps.ran == ["step", "deferred"]
    assert share.credit == pytest.approx(QUANTUM - SLICE / 2)
    assert not share.defer(steps.of("never"))


async def test_a_step_that_raises_does_not_stop_the_queue(cpu: CpuTime) -> None:
    """The loop's exception handler gets the error, and other steps run."""
    queue, steps = FairQueue(), Steps(cpu)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    share = Share(queue)

    def broken() -> None:
        raise ZeroDivisionError

    share.enqueue(broken)
    share.enqueue(steps.of("next"))
    Share(queue).enqueue(steps.of("other"))

    await steps.until_run(2)
    assert sorted(steps.ran) == ["next", "other"]
    assert [type(error) for error in errors] == [ZeroDivisionError]


async def test_cpu_time_outside_of_steps_can_be_charged(cpu: CpuTime) -> None:
    """A share that was charged goes after one that was not."""
    queue, steps = FairQueue(), Steps(cpu)
    charged, other = backlogged(queue), backlogged(queue)
    charged.charge(1.0)
    charged.enqueue(steps.of("charged"))
    other.enqueue(steps.of("other"))

    await steps.until_run(2)

    assert steps.ran == ["other", "charged"]


def test_each_loop_has_its_own_queue() -> None:
    """Steps that wait when a loop ends do not block the next loop."""

    async def mine() -> FairQueue:
        queue = fair_queue(asyncio.get_running_loop())
        assert queue is fair_queue(asyncio.get_running_loop())
        Share(queue).enqueue(lambda: None)
        return queue

    assert asyncio.run(mine()) is not asyncio.run(mine())


@given(st.lists(st.floats(0.0001, 0.002), min_size=1, max_size=100), st.floats(0.00001, 0.0001))
@settings(deadline=None, max_examples=30)
def test_a_light_share_waits_for_one_step_however_many_flood(floods: list[float], small: float) -> None:
    """Before a light share's step, at most the remainder of a slice and one step run."""

    async def play() -> None:
        queue, steps = FairQueue(), Steps(cpu)
        for number, seconds in enumerate(floods):
            share = backlogged(queue)
            for _ in range(200):
                share.enqueue(steps.of(f"flood {number}", seconds))
        light = Share(queue)
        for _ in range(5):
            await steps.until_run(len(steps.ran) + len(floods))
            before, arrived = len(steps.ran), cpu.now
            light.run(steps.of("light", small))
            while "light" not in steps.ran[before:]:
                await steps.until_run(len(steps.ran) + 1)
            waited = cpu.now - arrived
            assert waited <= SLICE + max(floods) + small + 1e-9

    with pytest.MonkeyPatch.context() as patch:
        cpu = CpuTime()
        patch.setattr(module, "thread_time", cpu)
        patch.setattr(module, "monotonic", lambda: cpu.clock)
        asyncio.run(play())
