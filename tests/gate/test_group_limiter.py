"""The limits of a group by themselves: what exceeds them waits, and the agents take turns."""

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest
import uvloop

from tests.until import until
from tunnelmgr.core.group_limits import UNLIMITED, GroupLimits
from tunnelmgr.core.rate_limit import TokenBucket
from tunnelmgr.gate import group_limiter
from tunnelmgr.gate.group_limiter import ConcurrencyInTurns, GroupLimiters, LimitExceededError, RateLimit
from tunnelmgr.turns import Turns

FAST = 200.0
"""A rate per second at which the tests of waits end soon."""


async def test_agents_take_turns() -> None:
    """An agent that waits for much gets one turn, then the next agent has its turn."""
    turns = Turns()
    waits = {
        turns.add(agent, 1.0): f"{agent}{number}"
        for agent in ("a", "b")
        for number in range(1, 4 if agent == "a" else 2)
    }

    order = [waits[wait] for _ in range(4) if (wait := turns.next()) is not None]

    assert order == ["a1", "b1", "a2", "a3"]
    assert turns.next() is None
    assert not turns


async def test_a_wait_that_is_given_up_takes_no_turn() -> None:
    """The others keep their order, and a wait can be removed twice."""
    turns = Turns()
    first, second, other = turns.add("a", 1.0), turns.add("a", 1.0), turns.add("b", 1.0)

    turns.remove("a", first)
    turns.remove("a", first)
    turns.remove("c", first)

    assert [turns.next(), turns.next(), turns.next()] == [second, other, None]
    assert len(turns) == 0


async def test_no_more_than_the_rate_is_granted() -> None:
    """A second's rate is free at once, and then no more is granted than the time allows, on a machine of any speed."""
    limit, loop = RateLimit(FAST), asyncio.get_running_loop()
    began = loop.time()

    await asyncio.gather(*(limit.acquire("a") for _ in range(int(FAST) + 40)))

    elapsed = loop.time() - began
    assert FAST + FAST * elapsed + 1 >= FAST + 40
    assert (limit.waits > 0, limit.waiting, limit.refused) == (True, 0, 0)
    assert limit.waited_s > 0


def test_waits_of_less_than_a_millisecond_do_not_busy_the_loop() -> None:
    """With uvloop, whose timers count milliseconds, there are no more looks at who may go than turns."""
    looks = 0

    class Counted(RateLimit):
        def _serve(self) -> None:
            nonlocal looks
            looks += 1
            super()._serve()

    async def wait() -> None:
        limit = Counted(3000.0)
        await limit.acquire("a", 3000.0)
        await asyncio.gather(*(limit.acquire(agent) for agent in range(300)))

    uvloop.run(wait())

    assert 0 < looks <= 300


async def test_whoever_takes_more_than_there_is_delays_the_next_one() -> None:
    """A large amount is granted at once if anything is left, and the next wait lasts until it is paid for."""
    limit, loop = RateLimit(FAST), asyncio.get_running_loop()
    began = loop.time()

    await limit.acquire("a", 1.2 * FAST)
    assert limit.waits == 0
    await limit.acquire("a", 1.0)

    assert limit.waits == 1
    assert loop.time() - began > 0.1  # half of the time in which the rate gives what was not free


async def test_an_agent_with_many_requests_does_not_delay_the_others() -> None:
    """Of two agents, the one with few requests is served long before the other one's last."""
    limit, order = RateLimit(FAST), list[str]()
    await limit.acquire("busy", 1.1 * FAST)

    async def ask(agent: str) -> None:
        await limit.acquire(agent, FAST / 50)
        order.append(agent)

    await asyncio.gather(*(ask("busy") for _ in range(10)), *(ask("other") for _ in range(2)))

    assert sorted(order[:4]) == ["busy", "busy", "other", "other"]


async def test_a_wait_ends_in_a_refusal() -> None:
    """A wait that ended without a turn is counted, and delays nobody after it."""
    limit = RateLimit(1.0)
    await limit.acquire("a", 1000.0)

    assert not await limit.acquire("a", patience=0.01)

    assert (limit.refused, limit.waiting) == (1, 0)


async def test_a_cancelled_wait_leaves_the_others_their_turns() -> None:
    """A client that goes away while it waits takes nothing."""
    limit = RateLimit(FAST)
    await limit.acquire("a", 1.1 * FAST)
    async with asyncio.TaskGroup() as tasks:
        gone = tasks.create_task(limit.acquire("a", 1e9), name="gone")
        stays = tasks.create_task(limit.acquire("a"), name="stays")
        await until(lambda: limit.waiting == 2)

        gone.cancel()

    assert stays.result()


async def test_no_more_run_at_once_than_allowed() -> None:
    """Twenty agents share three places, and each gets one."""
    places, running, most = ConcurrencyInTurns(3), 0, 0

    async def run(agent: int) -> None:
        nonlocal running, most
        await places.acquire(agent)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        places.release()

    await asyncio.gather(*map(run, range(20)))

    assert most == 3
    assert await _free(places) == 3


async def test_a_place_is_not_lost_if_its_owner_goes_at_the_same_moment() -> None:
    """A wait that is cancelled in the moment of its turn gives the place back."""
    places = ConcurrencyInTurns(1)
    await places.acquire("a")
    async with asyncio.TaskGroup() as tasks:
        gone = tasks.create_task(places.acquire("b"), name="gone")
        await until(lambda: places.waiting == 1)

        places.release()
        gone.cancel()

    assert await _free(places) == 1


async def test_a_turn_that_is_cancelled_at_the_same_moment_is_paid_for() -> None:
    """What a rate has granted cannot be given back; the next one waits for it."""
    limit = RateLimit(FAST)
    await limit.acquire("a", 1.1 * FAST)
    async with asyncio.TaskGroup() as tasks:
        gone = tasks.create_task(limit.acquire("b", FAST / 10), name="gone")
        await until(lambda: limit.waiting == 1)

        limit._bucket = TokenBucket(FAST, FAST)
        limit._serve()
        gone.cancel()

    assert not limit._bucket.idle(asyncio.get_running_loop().time())


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (GroupLimits(requests_per_second=0.01), "requests_per_second"),
        (GroupLimits(concurrent_pulls=1), "concurrent_pulls"),
    ],
)
async def test_a_refusal_names_the_limit_and_the_group(
    limits: GroupLimits, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what was reached and what to change, and the health counts it."""
    monkeypatch.setattr(group_limiter, "PATIENCE", 0.01)
    limiters = GroupLimiters()
    limiter = limiters.of("ci", limits)
    assert limiter is not None

    async with limiter.turn("a", pulls_blob=True):
        with pytest.raises(LimitExceededError, match=f"group ci has reached its limit of {named}"):
            await _entered(limiter.turn("b", pulls_blob=True))

    (health,) = limiters.health()
    assert (health.group, health.limit, health.waiting, health.waits, health.refused) == ("ci", named, 0, 1, 1)


async def test_only_pulls_of_blobs_need_a_place() -> None:
    """Other requests pass while all places are taken."""
    limiter = GroupLimiters().of("ci", GroupLimits(concurrent_pulls=1))
    assert limiter is not None

    async with limiter.turn("a", pulls_blob=True), limiter.turn("b", pulls_blob=False):
        pass


def test_a_group_has_one_limiter_as_long_as_it_has_limits() -> None:
    """All channels of a group share it, also after a reload with other limits; without limits there is none."""
    limiters = GroupLimiters()
    first = limiters.of("ci", GroupLimits(concurrent_pulls=1))

    assert limiters.of("ci", GroupLimits(concurrent_pulls=1)) is first
    assert limiters.of("ci", GroupLimits(concurrent_pulls=2)) is first
    assert limiters.of("release", UNLIMITED) is None
    assert limiters.of("ci", UNLIMITED) is None
    assert limiters.health() == []


@pytest.mark.parametrize("after", [GroupLimits(requests_per_second=FAST, concurrent_pulls=3), UNLIMITED])
async def test_who_waits_follows_a_reload(after: GroupLimits) -> None:
    """A limit that is raised or removed lets those pass who wait for it."""
    limiters = GroupLimiters()
    limiter = limiters.of("ci", GroupLimits(requests_per_second=0.01, concurrent_pulls=1))
    assert limiter is not None
    done = asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(_held(limiter.turn("a", pulls_blob=True), done), name="running")
        waiting = tasks.create_task(_held(limiter.turn("b", pulls_blob=True), done), name="waiting")
        await until(lambda: sum(each.waiting for each in limiter.health()) == 1)

        limiters.of("ci", after)
        async with limiter.turn("c", pulls_blob=True):
            done.set()
        await asyncio.wait([running, waiting])


async def test_fewer_places_are_kept_once_pulls_end() -> None:
    """After a reload with fewer places, what runs continues, and the next one starts when few enough run."""
    places = ConcurrencyInTurns(3)
    for _ in range(3):
        await places.acquire("a")

    places.change(1)

    assert await _free(places) == 0
    for free in (0, 0, 1):
        places.release()
        assert await _free(places) == free


async def test_a_rate_that_is_changed_applies_to_its_waits_at_once() -> None:
    """A wait of a hundred seconds ends soon, and the rate is the new one; the same rate again grants nothing more."""
    limit = RateLimit(0.01)
    await limit.acquire("a")
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(limit.acquire("b"), name="waiting")
        await until(lambda: limit.waiting == 1)
        limit.change(0.01)
        assert limit.waiting == 1

        limit.change(FAST)

        assert await waiting
    assert limit.rate == FAST


async def _free(places: ConcurrencyInTurns) -> int:
    """Return how many places are free, by taking them."""
    taken = 0
    while await places.acquire("test", patience=0.01):
        taken += 1
    return taken


async def _held(context: AbstractAsyncContextManager[None], done: asyncio.Event) -> None:
    async with context:
        await done.wait()


async def _entered(context: AbstractAsyncContextManager[None]) -> None:
    async with context:
        pass


async def test_a_rate_that_changes_while_nobody_waits_holds_for_the_next_requests() -> None:
    """What was used up under the rate before is not owed under the new one."""
    limit = RateLimit(1.0)
    await limit.acquire("a", 1000.0)

    limit.change(FAST)

    assert await limit.acquire("a", patience=0.0)
    assert (limit.rate, limit.waits) == (FAST, 0)
