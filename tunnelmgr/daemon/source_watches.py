"""The sources that are polled: each with its poller, its timer, and its feed of events if it has one."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.events import FeedClosed
from tunnelmgr.core.missing_agents import missing_agents
from tunnelmgr.core.ports import EventSink, WorldView
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.daemon.prepared import PreparedSource
from tunnelmgr.discovery.ec2_events import EventFeed
from tunnelmgr.discovery.polling import MissingLookup, NothingMissing, Poller


@dataclass(frozen=True, slots=True)
class SourceWatch:
    """One source that is being polled."""

    prepared: PreparedSource
    tasks: tuple[asyncio.Task[None], ...]
    timer: Job


@dataclass(frozen=True, slots=True)
class MissingAgents:
    """Finds the agents that a listing lacks, by the world as it is now."""

    view: WorldView

    def missing_from(self, source: str, listing: Snapshot) -> tuple[Agent, ...]:
        """Return the agents of a source that its listing lacks; called in the source's thread."""
        return missing_agents(self.view.world, source, listing)


@dataclass(slots=True)
class SourceWatches:
    """Starts and stops polling sources as the configuration says, and in a cluster only those that it leases."""

    tasks: asyncio.TaskGroup
    scheduler: AsyncIOScheduler
    events: EventSink
    missing: MissingLookup = field(default_factory=NothingMissing)
    _sources: Sequence[PreparedSource] = ()
    _leased: frozenset[str] | None = None
    _watches: dict[str, SourceWatch] = field(default_factory=dict)

    def follow(self, sources: Sequence[PreparedSource]) -> None:
        """Poll exactly these sources; one whose configuration is unchanged is not disturbed."""
        self._sources = sources
        self._update()

    def select(self, leased: frozenset[str] | None) -> None:
        """Poll only these of the sources, as long as another member polls the others; None means all."""
        if leased != self._leased:
            self._leased = leased
            self._update()

    @property
    def names(self) -> frozenset[str]:
        """The names of all sources, polled or not."""
        return frozenset(prepared.config.name for prepared in self._sources)

    def _update(self) -> None:
        wanted = {
            prepared.config.name: prepared
            for prepared in self._sources
            if self._leased is None or prepared.config.name in self._leased
        }
        for name, watch in list(self._watches.items()):
            if name not in wanted or wanted[name].config != watch.prepared.config:
                self._end(name)
        for name, prepared in wanted.items():
            if name not in self._watches:
                self._watches[name] = self._start(prepared)

    def running(self) -> dict[str, PreparedSource]:
        """Return the sources by name, as those that are polled were made."""
        made = {prepared.config.name: prepared for prepared in self._sources}
        return made | {name: watch.prepared for name, watch in self._watches.items()}

    def stop(self) -> None:
        """Stop polling."""
        self.follow([])

    def _start(self, prepared: PreparedSource) -> SourceWatch:
        config = prepared.config
        poller = Poller(prepared.source, self.events, missing=self.missing)

        async def poll_now() -> None:
            poller.wake()

        # Jitter: controllers that start together do not poll the cloud together.
        timer = self.scheduler.add_job(poll_now, "interval", seconds=config.poll, jitter=config.poll / 10)
        tasks = [self.tasks.create_task(poller.run(), name=f"source {config.name}")]
        if prepared.queue is not None:
            feed = EventFeed(config.name, prepared.queue, self.events, poller)
            tasks.append(self.tasks.create_task(feed.run(), name=f"events {config.name}"))
        return SourceWatch(prepared, tuple(tasks), timer)

    def _end(self, name: str) -> None:
        watch = self._watches.pop(name)
        for task in watch.tasks:
            task.cancel()
        watch.timer.remove()
        if watch.prepared.queue is not None:
            self.events.report(FeedClosed(name))
