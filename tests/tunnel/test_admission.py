"""Admission: which dials may connect, which handshakes may compute, in what order, and beside dead agents."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.until import until
from tunnelmgr.core.health import DialCounts
from tunnelmgr.core.precedence import NEW, PROVEN, Precedence
from tunnelmgr.ssh.permit import ReceiveProgress
from tunnelmgr.tunnel import admission as rules
from tunnelmgr.tunnel.admission import DIALS_AHEAD, MAX_PLACES, MAX_SLOTS, MIN_SLOTS, Admission, Permit, places_for
from tunnelmgr.tunnel.wait_queue import OLDEST_EVERY

FAILING = NEW + 5


class Sending:
    """A server that has sent something whenever it is checked."""

    def __init__(self) -> None:
        self._count = 0

    def receive_count(self) -> int:
        """Return the next number."""
        self._count += 1
        return self._count


class Silent:
    """A server that sends nothing more."""

    def receive_count(self) -> int:
        """Return the same number at every check."""
        return 0


@dataclass
class Crowd:
    """Dials that wait for one admission, and the order in which they were admitted."""

    admission: Admission = field(default_factory=Admission)
    permits: dict[float, Permit] = field(default_factory=dict)
    order: list[float] = field(default_factory=list)

    async def dial(self, seen: float, rank: int = NEW) -> Permit:
        """Wait for a place, and keep it."""
        permit = self.admission.permit(Precedence(rank, -seen))
        await permit.acquire_place()
        self.permits[seen] = permit
        self.order.append(seen)
        return permit

    async def shake_hands(self, seen: float, progress: ReceiveProgress | None = None) -> None:
        """Wait for a place and a slot, and keep both."""
        permit = self.admission.permit(Precedence(NEW, -seen))
        try:
            await permit.acquire_place()
            await permit.acquire_slot(progress or Sending())
        except asyncio.CancelledError:
            permit.end()
            raise
        self.permits[seen] = permit
        self.order.append(seen)

    def idle(self) -> bool:
        """Return whether nothing is held."""
        held = self.admission
        return (held._places, held._ahead, held._slots, held._computing) == (0, 0, 0, set())


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Make a crowd, and check at the end that everything is released."""
    crowd = Crowd()
    yield crowd
    for permit in crowd.permits.values():
        permit.end()
    assert crowd.idle()


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the admission's clock: no dial becomes stale, and no slot is added."""
    monkeypatch.setattr(rules, "MIN_PATIENCE", 1000.0)
    monkeypatch.setattr(rules, "MAX_PATIENCE", 1000.0)
    monkeypatch.setattr(rules, "SLOT_CHECK_INTERVAL", 1000.0)


# --- places ---


@pytest.mark.usefixtures("still")
async def test_a_few_dials_begin_at_once_and_the_others_as_these_proceed(crowd: Crowd) -> None:
    """The next dial begins when one gets its slot or ends; ending twice is the same as once."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(DIALS_AHEAD + 2):
            tasks.create_task(crowd.dial(float(number)), name=f"{number}")
        await until(lambda: len(crowd.order) == DIALS_AHEAD)

        crowd.permits[0.0].end()
        crowd.permits[0.0].end()
        await until(lambda: len(crowd.order) == DIALS_AHEAD + 1)
        await crowd.permits[1.0].acquire_slot(Silent())
        await until(lambda: len(crowd.order) == DIALS_AHEAD + 2)

    assert crowd.admission._places == DIALS_AHEAD + 1


@pytest.mark.usefixtures("still")
async def test_dials_are_counted_by_what_they_wait_for(crowd: Crowd) -> None:
    """The counts tell those that wait for a place from those that wait for a slot, and end at zero."""
    async with asyncio.TaskGroup() as tasks:
        shaking = [
            tasks.create_task(crowd.shake_hands(float(number), Silent()), name=f"{number}")
            for number in range(MIN_SLOTS + 1)
        ]
        await until(lambda: len(crowd.order) == MIN_SLOTS)
        dials = [tasks.create_task(crowd.dial(9.0 + number), name=f"dial {number}") for number in range(DIALS_AHEAD)]
        await until(lambda: crowd.admission.counts() == DialCounts(1, 1, MIN_SLOTS + DIALS_AHEAD))
        for task in (*shaking, *dials):
            task.cancel()

    assert crowd.admission.counts() == DialCounts(0, 0, len(crowd.permits))


async def test_silent_servers_delay_the_next_dial_only_briefly(crowd: Crowd) -> None:
    """A dial whose server stays silent no longer counts as ahead after `patience`."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(5 * DIALS_AHEAD):
            tasks.create_task(crowd.dial(float(number)), name=f"{number}")

    assert crowd.admission._places == 5 * DIALS_AHEAD
    await until(lambda: crowd.admission._ahead == 0)


async def test_a_slow_server_still_waits_for_its_slot(crowd: Crowd) -> None:
    """A dial whose server answers late counts as ahead again until it has a slot."""
    permit = await crowd.dial(1.0)
    await until(lambda: crowd.admission._ahead == 0)

    await permit.acquire_slot(Silent())

    assert permit.slotted
    assert crowd.admission._ahead == 0


@pytest.mark.usefixtures("still")
async def test_agents_that_were_up_go_first_then_new_then_failing_ones(crowd: Crowd) -> None:
    """Places go to proven, then new, then failing agents, the newest first, and every fourth to the oldest dial."""
    held = [await crowd.dial(-float(number)) for number in range(DIALS_AHEAD)]
    ranks = {1.0: FAILING + 1, 2.0: FAILING, 3.0: NEW, 4.0: NEW, 5.0: PROVEN, 6.0: PROVEN, 7.0: FAILING}
    async with asyncio.TaskGroup() as tasks:
        for seen, rank in ranks.items():
            tasks.create_task(crowd.dial(seen, rank), name=f"{seen}")
        await until(lambda: len(crowd.admission._dials) == len(ranks))
        for count in range(len(ranks)):
            held.pop().end()
            await until(lambda count=count: len(crowd.order) == DIALS_AHEAD + count + 1)
            held.append(crowd.permits[crowd.order[-1]])

    assert (OLDEST_EVERY, DIALS_AHEAD) == (4, 4)
    assert crowd.order[DIALS_AHEAD:] == [6.0, 5.0, 4.0, 1.0, 3.0, 7.0, 2.0]


async def test_dead_agents_leave_places_for_new_ones_and_new_ones_for_those_that_were_up(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that was up gets a place, however many agents do not answer."""
    monkeypatch.setattr(rules, "MIN_PATIENCE", 0.0)
    crowd.admission.places = 16
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(crowd.dial(float(number), FAILING), name="failing") for number in range(20)]
        await until(lambda: crowd.admission._places == 8)
        waiting += [tasks.create_task(crowd.dial(100.0 + number), name="new") for number in range(20)]
        await until(lambda: crowd.admission._places == 14)
        waiting += [tasks.create_task(crowd.dial(200.0 + number, PROVEN), name="was up") for number in range(20)]
        await until(lambda: crowd.admission._places == 16)
        for task in waiting:
            task.cancel()

    assert sum(seen < 100 for seen in crowd.order) == 8
    assert sum(seen >= 200 for seen in crowd.order) == 2


async def test_if_all_servers_are_slow_patience_grows(crowd: Crowd) -> None:
    """`patience` follows the time that servers take to answer, and ignores failing agents."""
    clock = asyncio.get_running_loop()
    assert crowd.admission.patience == rules.MIN_PATIENCE
    failing = await crowd.dial(0.0, FAILING)
    failing.began -= 9.0
    await failing.acquire_slot(Silent())
    failing.end()
    assert crowd.admission.patience == rules.MIN_PATIENCE

    for number in range(1, 20):
        slow = await crowd.dial(float(number))
        slow.began = clock.time() - 0.1
        await slow.acquire_slot(Silent())
        slow.end()
    assert crowd.admission.patience == pytest.approx(0.3, abs=0.05)

    slower = await crowd.dial(100.0)
    slower.began -= 9.0
    await slower.acquire_slot(Silent())
    assert crowd.admission.patience == rules.MAX_PATIENCE


@pytest.mark.parametrize(("descriptors", "places"), [(1_000_000, MAX_PLACES), (1024, 256), (4, MIN_SLOTS)])
def test_places_leave_most_descriptors_to_tunnels_and_their_channels(descriptors: int, places: int) -> None:
    """At most a quarter of the process's descriptors are places."""
    assert places_for(descriptors) == places


# --- giving up ---


@pytest.mark.usefixtures("still")
async def test_a_cancelled_dial_holds_nothing(crowd: Crowd) -> None:
    """A dial that is cancelled while it waits, or in the iteration in which it is admitted, holds nothing."""
    held = [await crowd.dial(-float(number)) for number in range(DIALS_AHEAD)]
    async with asyncio.TaskGroup() as tasks:
        waiting, let_in, cancelled, last = (
            tasks.create_task(crowd.dial(seen), name=f"{seen}") for seen in (1.0, 3.0, 4.0, 0.5)
        )
        await until(lambda: len(crowd.admission._dials) == 4)
        waiting.cancel()
        await until(lambda: len(crowd.admission._dials) == 3)
        cancelled.cancel()
        held.pop().end()  # admits 3.0, because 4.0 was cancelled
        let_in.cancel()
        await last

    assert crowd.order[DIALS_AHEAD:] == [0.5]
    assert len(crowd.admission._dials) == 0


@pytest.mark.usefixtures("still")
async def test_a_dial_is_admitted_if_all_others_were_just_cancelled(crowd: Crowd) -> None:
    """A dial that joins a queue of cancelled dials is admitted at once."""
    held = [await crowd.dial(-float(number)) for number in range(DIALS_AHEAD)]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(crowd.dial(1.0), name="waits")
        await until(lambda: len(crowd.admission._dials) == 1)
        waiting.cancel()
        held.pop().end()
        await crowd.dial(2.0)

    assert crowd.order[-1] == 2.0


@pytest.mark.usefixtures("still")
async def test_a_handshake_that_is_cancelled_as_it_gets_its_slot_gives_it_back(crowd: Crowd) -> None:
    """The slot of a handshake that is cancelled when it gets it goes to the next one."""
    for number in range(MIN_SLOTS):
        await crowd.shake_hands(-float(number))
    async with asyncio.TaskGroup() as tasks:
        permits = [await crowd.dial(seen) for seen in (2.0, 1.0)]
        first, second = (tasks.create_task(permit.acquire_slot(Silent()), name="waits") for permit in permits)
        await until(lambda: len(crowd.admission._handshakes) == 2)
        crowd.permits[0.0].end()
        first.cancel()
        await second

    assert [permit.slotted for permit in permits] == [False, True]


@pytest.mark.usefixtures("still")
async def test_cancelled_dials_do_not_pile_up(crowd: Crowd) -> None:
    """The queue's size is bounded, however many dials are cancelled behind one that waits."""
    held = [await crowd.dial(-float(number)) for number in range(DIALS_AHEAD)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(crowd.dial(1000.0, PROVEN), name="stays")
        leaving = [tasks.create_task(crowd.dial(float(number), FAILING), name="leaves") for number in range(1, 200)]
        await until(lambda: len(crowd.admission._dials) == 200)
        for task in leaving:
            task.cancel()
        await until(lambda: len(crowd.admission._dials) == 1)
        crowd.admission._fill_places()
        assert len(crowd.admission._dials._by_precedence) == 1
        held.pop().end()


# --- slots ---


@pytest.mark.usefixtures("still")
async def test_two_handshakes_compute_at_once_the_newest_agents_first(crowd: Crowd) -> None:
    """A handshake that ends lets the next one compute."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(MIN_SLOTS + 3):
            tasks.create_task(crowd.shake_hands(float(number)), name=f"{number}")
        await until(lambda: len(crowd.admission._handshakes) == 3)
        for count in range(3):
            crowd.permits[crowd.order[count]].end()
            await until(lambda count=count: len(crowd.order) == MIN_SLOTS + count + 1)

    assert crowd.order == [0.0, 1.0, 4.0, 2.0, 3.0]


async def test_while_the_loop_is_on_time_more_handshakes_compute(crowd: Crowd) -> None:
    """Slots are added up to `MAX_SLOTS`, so that handshakes which wait for the network overlap."""
    async with asyncio.TaskGroup() as tasks:
        coming = [tasks.create_task(crowd.shake_hands(float(number)), name="comes") for number in range(MAX_SLOTS + 5)]
        await until(lambda: len(crowd.permits) == MAX_SLOTS)
        looks = crowd.admission._timer
        await until(lambda: crowd.admission._timer is not looks)
        assert len(crowd.permits) == MAX_SLOTS
        for task in coming:
            task.cancel()


async def test_a_busy_loop_grants_only_the_minimum_of_slots(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the loop is late, slots are not refilled until only `MIN_SLOTS` compute."""
    monkeypatch.setattr(rules, "BUSY_LAG", -1.0)  # any loop is late
    async with asyncio.TaskGroup() as tasks:
        coming = [tasks.create_task(crowd.shake_hands(float(number)), name="comes") for number in range(MIN_SLOTS + 3)]
        await until(lambda: crowd.admission._busy)
        assert len(crowd.permits) == MIN_SLOTS
        crowd.admission._slots += 1  # as if one more had been admitted before
        crowd.permits[0.0].end()
        await asyncio.sleep(0)
        assert len(crowd.permits) == MIN_SLOTS
        crowd.admission._slots -= 1
        crowd.permits[1.0].end()
        await until(lambda: len(crowd.permits) == MIN_SLOTS + 1)
        for task in coming:
            task.cancel()


async def test_a_blocked_loop_counts_as_busy(crowd: Crowd) -> None:
    """Code that blocks the loop makes the slot check late, and so the loop busy."""
    async with asyncio.TaskGroup() as tasks:
        coming = [tasks.create_task(crowd.shake_hands(float(number)), name="comes") for number in range(MIN_SLOTS + 1)]
        await until(lambda: len(crowd.admission._handshakes) == 1)
        time.sleep(rules.SLOT_CHECK_INTERVAL + 4 * rules.BUSY_LAG)  # noqa: ASYNC251 - the blocked loop is what is tested
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert crowd.admission._busy
        for task in coming:
            task.cancel()


async def test_a_slot_is_taken_back_from_a_server_that_stays_silent(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent server loses its slot if another handshake waits; one that still sends keeps it."""
    monkeypatch.setattr(rules, "MAX_SLOTS", 0)  # no slot but those that are always there
    await crowd.shake_hands(1.0, progress=Silent())
    await crowd.shake_hands(2.0)

    await crowd.shake_hands(3.0)

    assert [crowd.permits[seen].slotted for seen in (1.0, 2.0, 3.0)] == [False, True, True]
    assert all(permit.placed for permit in crowd.permits.values())
