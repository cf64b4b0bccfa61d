"""The sources that are watched: each with its poller, its bell, and its feed of events where it has one."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tunnelmgr.config import Source, SourceConfig, source_type
from tunnelmgr.core.events import Event, FeedClosed
from tunnelmgr.discovery.ec2_events import EventFeed, Queue
from tunnelmgr.discovery.polling import Missing, Poller, nothing_missing
from tunnelmgr.errors import ConfigError


@runtime_checkable
class QueueOwner(Protocol):
    """A source that may have a queue of events."""

    def queue(self) -> Queue | None:
        """Return it, None where the configuration names none."""
        ...


@dataclass(frozen=True, slots=True)
class Watch:
    """One source at work."""

    source: Source
    tasks: tuple[asyncio.Task[None], ...]
    bell: Job
    has_feed: bool


@dataclass(slots=True)
class Watches:
    """Starts and stops the watching of sources as the configuration says."""

    tasks: asyncio.TaskGroup
    scheduler: AsyncIOScheduler
    report: Callable[[Event], None]
    missing: Missing = nothing_missing
    _watched: dict[str, Watch] = field(default_factory=dict)

    def follow(self, configs: list[SourceConfig]) -> None:
        """Watch exactly these sources; one whose configuration is unchanged goes on undisturbed."""
        wanted = {config.name: config for config in configs}
        for name, watch in list(self._watched.items()):
            if wanted.get(name) != watch.source.config:
                for task in watch.tasks:
                    task.cancel()
                watch.bell.remove()
                if watch.has_feed:
                    self.report(FeedClosed(name))
                del self._watched[name]
        for name, config in wanted.items():
            if name not in self._watched:
                self._watched[name] = self._start(config)

    def sources(self) -> list[Source]:
        """Return the sources that are watched."""
        return [watch.source for watch in self._watched.values()]

    def stop(self) -> None:
        """Watch nothing any more."""
        self.follow([])

    def _start(self, config: SourceConfig) -> Watch:
        source = build(config)
        poller = Poller(source, self.report, missing=self.missing)

        async def ring() -> None:
            poller.bell.set()

        # Jitter: controllers started together do not ask the cloud together.
        job = self.scheduler.add_job(ring, "interval", seconds=config.poll, jitter=config.poll / 10)
        tasks = [self.tasks.create_task(poller.run(), name=f"source {config.name}")]
        queue = source.queue() if isinstance(source, QueueOwner) else None
        if queue is not None:
            feed = EventFeed(config.name, queue, self.report, poller.bell.set)
            tasks.append(self.tasks.create_task(feed.run(), name=f"events {config.name}"))
        return Watch(source, tuple(tasks), job, has_feed=queue is not None)


def build(config: SourceConfig) -> Source:
    """Make the source that a configuration describes."""
    kind = source_type(config.type)
    if kind is None:
        raise ConfigError([f"source {config.name}: there is no source type {config.type}"])
    return kind(config)
