"""Preparing a configuration: every step that can fail is done before anything changes.

Files are read, keys are loaded and sources are made here, in a thread, each once. The result can be followed without a
further check, so a reload changes everything or nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import structlog

from tunnelmgr.config import AgentSource, Config, SourceConfig, SshConfig, load, source_type
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policies import Policies
from tunnelmgr.core.rules import Rules
from tunnelmgr.discovery.ec2_events import EventQueue
from tunnelmgr.errors import ConfigError
from tunnelmgr.ssh.login import Login, load_login

log = structlog.get_logger(__name__)

Made = TypeVar("Made")


@runtime_checkable
class HasEventQueue(Protocol):
    """A source that may have a queue of events."""

    def queue(self) -> EventQueue | None:
        """Return the queue; None if the configuration does not name one."""
        ...


@runtime_checkable
class PinsKeys(Protocol):
    """A source's configuration that pins host keys."""

    def pinned_keys(self) -> Mapping[AgentId, str]:
        """Return the keys by agent."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """A source, its event queue if it has one, and the host keys that its configuration pins if it can."""

    source: AgentSource
    queue: EventQueue | None = None
    pinned: Mapping[AgentId, str] | None = None

    @property
    def config(self) -> SourceConfig:
        """The source's configuration."""
        return self.source.config


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a daemon needs to follow a configuration."""

    config: Config
    login: Login
    sources: tuple[PreparedSource, ...]
    policies: Policies
    rules: Rules


@dataclass(slots=True)
class _LoginLoader:
    """Loads the keys of `[ssh]` while the file is checked."""

    login: Login | None = field(default=None)

    def __call__(self, ssh: SshConfig) -> None:
        self.login = load_login(ssh)


def prepare(file: Path, running: Mapping[str, PreparedSource] | None = None, text: str | None = None) -> Prepared:
    """Read a configuration and make everything that it needs; raises ConfigError with every problem. Blocks.

    A source in `running` whose configuration has not changed is kept. With `text`, the file itself is not read.
    """
    loader = _LoginLoader()
    config = load(file, loader, text)
    if loader.login is None:
        raise AssertionError("a configuration without problems has an [ssh] table that was loaded")
    kept = running or {}
    problems: list[str] = []
    sources = []
    for at, entry in enumerate(config.source):
        before = kept.get(entry.name)
        try:
            sources.append(before if before is not None and before.config == entry else prepared_source(entry))
        except ConfigError as invalid:
            problems += [f"source[{at}]: {problem}" for problem in invalid.problems]
    if problems:
        raise ConfigError(problems, file=str(file))
    return Prepared(config, loader.login, tuple(sources), config.policies(), config.rules())


def prepared_source(config: SourceConfig) -> PreparedSource:
    """Make a source with its queue and its pinned keys; raises ConfigError if any of that fails."""
    source = build(config)
    queue = _made(config, source.queue) if isinstance(source, HasEventQueue) else None
    pinned = _made(config, config.pinned_keys) if isinstance(config, PinsKeys) else None
    return PreparedSource(source, queue, pinned)


def build(config: SourceConfig) -> AgentSource:
    """Make the source that a configuration describes; raises ConfigError if that fails."""
    kind = source_type(config.type)
    if kind is None:
        raise ConfigError([f"unknown source type {config.type!r}"])
    return _made(config, lambda: kind(config))


def _made(config: SourceConfig, make: Callable[[], Made]) -> Made:
    """Return the result of `make`; a bulkhead, because sources are plug-ins that may fail in any way."""
    try:
        return make()
    except Exception as broken:
        log.exception("source creation failed", source=config.name)
        raise ConfigError([f"source {config.name!r} of type {config.type} failed to start: {broken!r}"]) from broken
