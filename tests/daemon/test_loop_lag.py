"""A blocked event loop is measured."""

import asyncio
from dataclasses import dataclass, field

import pytest

from tunnelmgr.daemon.loop_lag import watch_lag


@dataclass
class Timer:
    """A clock and a sleep that is late by what the test says, and cancelled after that."""

    late: list[float]
    now: float = 100.0
    reports: list[float] = field(default_factory=list)

    def clock(self) -> float:
        """Return the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        if not self.late:
            raise asyncio.CancelledError
        self.now += seconds + self.late.pop(0)


async def test_each_interval_reports_by_how_much_its_timer_was_late() -> None:
    """A blocked loop is reported with the time for which it was late, and a loop on time with zero."""
    timer = Timer(late=[0.5, 0.0, 0.25])

    with pytest.raises(asyncio.CancelledError):
        await watch_lag(timer.reports.append, timer.sleep, timer.clock)

    assert timer.reports == pytest.approx([0.5, 0.0, 0.25])


async def test_a_timer_that_is_early_counts_as_on_time() -> None:
    """A timer that fires early by the clock's resolution is reported with zero."""
    timer = Timer(late=[-0.001])

    with pytest.raises(asyncio.CancelledError):
        await watch_lag(timer.reports.append, timer.sleep, timer.clock)

    assert timer.reports == [0.0]


async def test_it_measures_the_running_loop() -> None:
    """By default the real loop and clock are measured, again and again."""
    reports: list[float] = []
    enough = asyncio.Event()

    def report(seconds: float) -> None:
        reports.append(seconds)
        if len(reports) == 2:
            enough.set()

    async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
        watch = tasks.create_task(watch_lag(report), name="watch")
        await enough.wait()
        watch.cancel()

    assert min(reports) >= 0
