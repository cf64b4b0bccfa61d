"""The format of the daemon's log: one line for each event on stderr, coloured on a terminal, JSON for a collector."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

from tunnelmgr.core.sanitize import printable
from tunnelmgr.observability.journal import PRIORITIES, is_journal


class LogFormat(StrEnum):
    """The format of a line."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Rendering = Callable[[structlog.typing.WrappedLogger, str, structlog.typing.EventDict], str]


@dataclass(frozen=True, slots=True)
class WithPriority:
    """A renderer whose lines begin with their priority, as systemd's journal reads it."""

    inner: Rendering

    def __call__(self, logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict) -> str:
        """Return the event as text."""
        priority = PRIORITIES.get(event.get("level", method), PRIORITIES["info"])
        return "\n".join(f"<{priority}>{line}" for line in self.inner(logger, method, event).split("\n"))


def configure(log_format: LogFormat, level: LogLevel) -> None:
    """Send our events, and the libraries' warnings, to stderr in one format."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # Not the pretty form of tracebacks, which prints local variables: they may hold secrets.
    rendering: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    renderer: Rendering = structlog.processors.JSONRenderer()  # type: ignore[assignment]  # it returns text by default
    if log_format is LogFormat.TEXT:
        rendering.append(_without_control_characters)
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
        )
    rendering.append(WithPriority(renderer) if is_journal(sys.stderr) else renderer)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    # Libraries log too much below this: asyncssh every packet, apscheduler every job.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
    # A job that is late is merged into its next run, which is not worth a warning.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def quiet_log() -> None:
    """Send only warnings and errors to stderr: for commands that use parts of the daemon, and print results."""
    configure(LogFormat.TEXT, LogLevel.WARNING)


def _without_control_characters(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Replace characters that control a terminal, which an agent may have sent; JSON escapes them by itself."""
    return {
        printable(key): printable(value, keep="\n") if isinstance(value, str) else value for key, value in event.items()
    }
