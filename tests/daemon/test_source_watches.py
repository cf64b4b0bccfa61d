"""Sources are started and stopped as the configuration changes; an unchanged one is not disturbed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tests.until import DEADLINE, until
from tunnelmgr.config import SourceConfig
from tunnelmgr.core.events import AgentsDiscovered, Event, FeedClosed, FeedReported
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.daemon.prepared import PreparedSource, prepared_source
from tunnelmgr.daemon.source_watches import SourceWatches
from tunnelmgr.discovery.static import StaticAgent, StaticConfig


def office(name: str = "office", *agents: str, poll: str = "1h") -> PreparedSource:
    """Return a static source with these agents."""
    entries = [StaticAgent(name=agent, address="192.0.2.7") for agent in agents]
    return prepared_source(StaticConfig(name=name, type="static", trust=[Method.TOFU], poll=poll, agent=entries))


@dataclass
class Events:
    """Keeps what is reported."""

    reported: list[Event]

    def report(self, event: Event) -> None:
        """Keep an event."""
        self.reported.append(event)


@asynccontextmanager
async def watching() -> AsyncIterator[tuple[SourceWatches, list[Event], AsyncIOScheduler]]:
    """Run a scheduler and a task group for the watches, and end both."""
    scheduler = AsyncIOScheduler(timezone="UTC")
    scheduler.start()
    events: list[Event] = []
    async with asyncio.TaskGroup() as tasks:
        watches = SourceWatches(tasks, scheduler, Events(events))
        try:
            yield watches, events, scheduler
        finally:
            watches.stop()
            scheduler.shutdown(wait=False)


def seen(events: list[Event]) -> list[tuple[str, set[str]]]:
    """Return each snapshot's source and the names of its agents."""
    return [
        (event.source, {agent.name for agent in event.snapshot.agents})
        for event in events
        if isinstance(event, AgentsDiscovered)
    ]


async def test_a_source_is_polled_at_once_and_at_every_interval() -> None:
    """The first poll does not wait for the interval."""
    async with watching() as (watches, events, _):
        watches.follow([office("office", "builder-1", poll="100ms")])
        await until(lambda: len(events) >= 3)

    assert seen(events)[0] == ("office", {"builder-1"})


async def test_an_unchanged_source_is_not_disturbed() -> None:
    """An unchanged source keeps its task and its timer after a reload."""
    async with watching() as (watches, events, scheduler):
        watches.follow([office("office", "builder-1"), office("cellar", "builder-2")])
        await until(lambda: len(events) == 2)
        before, jobs = watches.running()["office"], {job.id for job in scheduler.get_jobs()}

        watches.follow([office("office", "builder-1"), office("cellar", "builder-3")])
        await until(lambda: len(events) == 3)

        assert watches.running()["office"] is before
        assert seen(events)[-1] == ("cellar", {"builder-3"})
        assert len(jobs & {job.id for job in scheduler.get_jobs()}) == 1


async def test_a_removed_source_is_not_polled() -> None:
    """A removed source leaves neither a task nor a timer."""
    async with watching() as (watches, events, scheduler):
        watches.follow([office("office", "builder-1", poll="100ms")])
        await until(lambda: events)
        watches.follow([])

        assert watches.running() == {}
        assert scheduler.get_jobs() == []
        events.clear()
        # Another source is polled at once, and again after the same interval.
        watches.follow([office("cellar", "builder-2", poll="100ms")])
        await until(lambda: len(events) >= 3)

    assert {source for source, _ in seen(events)} == {"cellar"}


@dataclass
class Listening:
    """A source with an event queue that stays empty."""

    config: SourceConfig
    asked: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)

    def discover(self) -> Snapshot:
        """Find no agents."""
        return Snapshot(frozenset())

    def queue(self) -> "Listening":
        """Return itself."""
        return self

    def receive(self) -> list[dict[str, Any]]:
        """Return the first answer at once, and the second when the test closes the queue; neither has messages."""
        if self.asked.is_set():
            self.closed.wait(DEADLINE)
        self.asked.set()
        return []

    def delete(self, receipts: list[str]) -> None:
        """Do nothing."""


async def test_the_end_of_a_queue_is_reported() -> None:
    """A removed queue is reported, so that its last failure is no longer shown."""
    source = Listening(SourceConfig(name="cloud", type="ec2", trust=[Method.CONSOLE]))
    async with watching() as (watches, events, _):
        watches.follow([PreparedSource(source, source.queue()), office()])
        await until(lambda: FeedReported("cloud", None) in events)

        watches.follow([])

        assert [event for event in events if isinstance(event, FeedClosed)] == [FeedClosed("cloud")]
        source.closed.set()


async def test_stopping_before_the_scheduler_runs_does_nothing() -> None:
    """The watches can be stopped before the scheduler has started."""
    async with asyncio.TaskGroup() as tasks:
        watches = SourceWatches(tasks, AsyncIOScheduler(timezone="UTC"), Events([]))
        watches.follow([office()])
        watches.stop()

    assert watches.running() == {}
