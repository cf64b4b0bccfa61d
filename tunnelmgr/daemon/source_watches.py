"""The sources that are watched: each with its poller, its bell, and its feed of events where it has one."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tunnelmgr.core.events import Event, FeedClosed
from tunnelmgr.daemon.prepared import PreparedSource
from tunnelmgr.discovery.ec2_events import EventFeed
from tunnelmgr.discovery.polling import Missing, Poller, nothing_missing


@dataclass(frozen=True, slots=True)
class Watch:
    """One source at work."""

    prepared: PreparedSource
    tasks: tuple[asyncio.Task[None], ...]
    bell: Job


@dataclass(slots=True)
class Watches:
    """Starts and stops the watching of sources as the configuration says."""

    tasks: asyncio.TaskGroup
    scheduler: AsyncIOScheduler
    report: Callable[[Event], None]
    missing: Missing = nothing_missing
    _watched: dict[str, Watch] = field(default_factory=dict)

    def follow(self, sources: Sequence[PreparedSource]) -> None:
        """Watch exactly these sources; one whose configuration is unchanged goes on undisturbed."""
        wanted = {prepared.config.name: prepared for prepared in sources}
        for name, watch in list(self._watched.items()):
            if name not in wanted or wanted[name].config != watch.prepared.config:
                for task in watch.tasks:
                    task.cancel()
                watch.bell.remove()
                if watch.prepared.queue is not None:
                    self.report(FeedClosed(name))
                del self._watched[name]
        for name, prepared in wanted.items():
            if name not in self._watched:
                self._watched[name] = self._start(prepared)

    def running(self) -> dict[str, PreparedSource]:
        """Return the sources that are watched, by name."""
        return {name: watch.prepared for name, watch in self._watched.items()}

    def stop(self) -> None:
        """Watch nothing any more."""
        self.follow([])

    def _start(self, prepared: PreparedSource) -> Watch:
        config = prepared.config
        poller = Poller(prepared.source, self.report, missing=self.missing)

        async def ring() -> None:
            poller.bell.set()

        # Jitter: controllers started together do not ask the cloud together.
        job = self.scheduler.add_job(ring, "interval", seconds=config.poll, jitter=config.poll / 10)
        tasks = [self.tasks.create_task(poller.run(), name=f"source {config.name}")]
        if prepared.queue is not None:
            feed = EventFeed(config.name, prepared.queue, self.report, poller.bell.set)
            tasks.append(self.tasks.create_task(feed.run(), name=f"events {config.name}"))
        return Watch(prepared, tuple(tasks), job)
