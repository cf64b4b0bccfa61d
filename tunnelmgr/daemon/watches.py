"""The sources that are watched: each with its poller, its bell and the trust methods it can serve."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tunnelmgr.config import Source, SourceConfig, source_type
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import Event
from tunnelmgr.core.ports import HostKeySource
from tunnelmgr.core.trust import Method
from tunnelmgr.discovery.polling import Poller
from tunnelmgr.errors import ConfigError
from tunnelmgr.trust.console import ConsoleKeys
from tunnelmgr.trust.pinned import PinnedKeys
from tunnelmgr.trust.tofu import FirstKey

Scan = Callable[[Agent], Awaitable[str]]
"""Asks an agent which host key it shows, offering nothing."""


@runtime_checkable
class ConsoleReader(Protocol):
    """A source that can read an instance's console."""

    def console_output(self, agent: Agent) -> str:
        """Return the console's text; blocks."""
        ...


@runtime_checkable
class KeyFile(Protocol):
    """A source's configuration that pins keys."""

    def pinned_keys(self) -> Mapping[AgentId, str]:
        """Return the keys by agent."""
        ...


@dataclass(frozen=True, slots=True)
class Watch:
    """One source at work."""

    config: SourceConfig
    task: asyncio.Task[None]
    bell: Job
    methods: Mapping[Method, HostKeySource]


@dataclass(slots=True)
class Watches:
    """Starts and stops the watching of sources as the configuration says."""

    tasks: asyncio.TaskGroup
    scheduler: AsyncIOScheduler
    report: Callable[[Event], None]
    scan: Scan
    _watched: dict[str, Watch] = field(default_factory=dict)

    def follow(self, configs: list[SourceConfig]) -> None:
        """Watch exactly these sources; one whose configuration is unchanged goes on undisturbed."""
        wanted = {config.name: config for config in configs}
        for name, watch in list(self._watched.items()):
            if wanted.get(name) != watch.config:
                watch.task.cancel()
                watch.bell.remove()
                del self._watched[name]
        for name, config in wanted.items():
            if name not in self._watched:
                self._watched[name] = self._start(config)

    def methods(self) -> dict[str, Mapping[Method, HostKeySource]]:
        """Return each source's trust methods."""
        return {name: watch.methods for name, watch in self._watched.items()}

    def stop(self) -> None:
        """Watch nothing any more."""
        self.follow([])

    def _start(self, config: SourceConfig) -> Watch:
        source = build(config)
        poller = Poller(source, self.report)

        async def ring() -> None:
            poller.bell.set()

        # Jitter: controllers started together do not ask the cloud together.
        job = self.scheduler.add_job(ring, "interval", seconds=config.poll, jitter=config.poll / 10)
        task = self.tasks.create_task(poller.run(), name=f"source {config.name}")
        return Watch(config, task, job, self._methods_of(source))

    def _methods_of(self, source: Source) -> Mapping[Method, HostKeySource]:
        methods: dict[Method, HostKeySource] = {Method.TOFU: FirstKey(self.scan)}
        if isinstance(source.config, KeyFile):
            methods[Method.PINNED] = PinnedKeys(source.config.pinned_keys())
        if isinstance(source, ConsoleReader):
            methods[Method.CONSOLE] = ConsoleKeys(source.console_output)
        return methods


def build(config: SourceConfig) -> Source:
    """Make the source that a configuration describes."""
    kind = source_type(config.type)
    if kind is None:
        raise ConfigError([f"source {config.name}: there is no source type {config.type}"])
    return kind(config)
