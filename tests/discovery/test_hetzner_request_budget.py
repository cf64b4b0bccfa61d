"""The request budget of a Hetzner project: polling slows down as it runs out."""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

import pytest

from lab.hetzner import HetznerCloud
from tests.discovery.hetzner_project import Make, Time, launch_many
from tunnelmgr.config import SourceConfig
from tunnelmgr.core.events import Event
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.discovery.hetzner_request_budget import RequestBudget
from tunnelmgr.discovery.polling import Poller
from tunnelmgr.errors import DiscoveryError


def test_a_full_budget_needs_no_pause(cloud: HetznerCloud, make: Make) -> None:
    """Down to half of the limit, polling keeps its interval."""
    source = make()

    source.discover()
    full = source.pause()
    cloud.budget(1801)
    source.discover()

    assert (full, source.pause()) == (0.0, 0.0)


def test_a_falling_budget_slows_polling(cloud: HetznerCloud, make: Make, clock: Time) -> None:
    """The pause grows with the requests of a poll: three pages wait three times as long as one."""
    launch_many(cloud, 120)
    source = make()

    cloud.budget(903)
    source.discover()
    at_a_quarter = source.pause()
    cloud.budget(303)
    source.discover()
    at_a_twelfth = source.pause()
    clock.now += 10

    assert at_a_quarter == pytest.approx(3.0)
    assert at_a_twelfth == pytest.approx(15.0)
    assert source.pause() == pytest.approx(5.0)


def test_after_a_429_polling_waits_for_the_reset(cloud: HetznerCloud, make: Make, clock: Time) -> None:
    """After a 429, polling pauses until the budget is full."""
    cloud.budget(0, limit=3600)
    source = make()

    with pytest.raises(DiscoveryError, match="429"):
        source.discover()
    after_an_hours_worth = source.pause()
    cloud.fault("list", status=429)
    cloud.budget(3541)
    with pytest.raises(DiscoveryError, match="429"):
        source.discover()

    assert after_an_hours_worth == 300.0
    assert source.pause() == pytest.approx(60.0, abs=2)
    clock.now += 63
    assert source.pause() == 0.0


def test_a_429_without_headers_pauses_for_a_minute() -> None:
    """Missing and invalid headers of a 429 mean a pause of a minute."""
    budget = RequestBudget(clock=lambda: 0.0)

    budget.record(429, {"RateLimit-Limit": "many", "RateLimit-Remaining": "-1", "RateLimit-Reset": "soon", "Date": "?"})

    assert budget.pause() == 60.0


def test_the_next_answer_ends_a_refusal() -> None:
    """A successful answer after a 429 ends the pause."""
    budget = RequestBudget(clock=lambda: 0.0)

    budget.record(429, {})
    budget.record(200, {"RateLimit-Limit": "3600", "RateLimit-Remaining": "3000"})

    assert budget.pause() == 0.0


@pytest.mark.parametrize("cost", [1, 10, 100, 250])
@pytest.mark.parametrize("interval", [0.1, 15.0])
def test_polling_alone_never_uses_up_the_budget(cost: int, interval: float) -> None:
    """Over a day of polls, the budget stays above a quarter less one poll."""
    clock = Time()
    budget = RequestBudget(clock)
    left, lowest = 3600.0, 3600.0

    while clock.now < 86400:
        budget.begin()
        budget.spent = cost
        left -= cost
        budget.record(200, {"RateLimit-Limit": "3600", "RateLimit-Remaining": str(int(left))})
        lowest = min(lowest, left)
        waited = interval + budget.pause()
        clock.now += waited
        left = min(3600.0, left + waited)

    assert lowest > 900 - cost - 1


def test_polling_leaves_requests_to_others() -> None:
    """If other programs use nearly the whole budget, polling pauses for the maximum."""
    budget = RequestBudget(clock=lambda: 0.0)
    budget.spent = 3

    budget.record(200, {"RateLimit-Limit": "3600", "RateLimit-Remaining": "5"})
    nearly_nothing = budget.pause()
    budget.record(200, {"RateLimit-Limit": "3600", "RateLimit-Remaining": "0"})

    assert (nearly_nothing, budget.pause()) == (300.0, 300.0)


# --- the poller that waits ----------------------------------------------------------------------------------------


@dataclass
class PacedSource:
    """A source that asks for these pauses in turn, and fails if the test wants."""

    pauses: list[float]
    fails: bool = False
    config: SourceConfig = field(
        default_factory=lambda: SourceConfig.model_validate(
            {"name": "paced", "type": "paced", "trust": ["seeded"], "poll": "10s"}
        )
    )

    def discover(self) -> Snapshot:
        """Answer, or fail."""
        if self.fails:
            raise DiscoveryError("paced", "429")
        return Snapshot(frozenset())

    def pause(self) -> float:
        """Return the next pause."""
        return self.pauses.pop(0)


class NoMoreWakeUps(Exception):  # noqa: N818 - nothing went wrong
    """The last wake-up has passed."""


class WakeUps(asyncio.Event):
    """Wake-ups at these times; each comes as soon as it is waited for."""

    def __init__(self, clock: Time, times: list[float]) -> None:
        super().__init__()
        self.clock = clock
        self.times = times

    async def wait(self) -> Literal[True]:
        """Set the clock to the next wake-up."""
        if not self.times:
            raise NoMoreWakeUps
        self.clock.now = self.times.pop(0)
        return True


@dataclass(frozen=True)
class PollTimes:
    """Records the time of each reported poll."""

    clock: Time
    times: list[float]

    def report(self, _event: Event) -> None:
        """Record the time."""
        self.times.append(self.clock.now)


async def polls(source: PacedSource, wake_ups: list[float]) -> list[float]:
    """Return the times of the polls, the first of which is at 0."""
    clock, started = Time(0.0), list[float]()
    poller = Poller(source, PollTimes(clock, started), WakeUps(clock, wake_ups), clock=clock)

    with pytest.raises(NoMoreWakeUps):
        await poller.run()
    return started


@pytest.mark.parametrize("fails", [False, True])
async def test_wake_ups_before_the_end_of_a_pause_are_skipped(*, fails: bool) -> None:
    """After an answer and after a failure, the wake-up nearest to the interval and the pause is used."""
    source = PacedSource([35.0, 0.0, 4.0, 6.0, 0.0], fails)

    assert await polls(source, [10, 20, 30, 40.5, 50, 60, 70, 80]) == [0, 40.5, 50, 60, 80]


async def test_a_pause_that_crashes_is_a_failure_of_the_source_only() -> None:
    """If a source fails to return its pause, polling continues at the next wake-up."""
    assert await polls(PacedSource([]), [10, 20]) == [0, 10, 20]
