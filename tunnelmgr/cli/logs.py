"""How the daemon logs: one line an event on stderr, coloured on a terminal, JSON for a collector."""

import logging
import sys
from enum import StrEnum

import structlog

from tunnelmgr.core.sanitize import printable


class LogFormat(StrEnum):
    """The form of a line."""

    TEXT = "text"
    JSON = "json"


def configure(form: LogFormat, level: str) -> None:
    """Send our events, and the libraries' warnings, to stderr in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if form is LogFormat.JSON:
        rendering: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        rendering = [
            # Plain: the pretty form shows the values of local variables, and those are no matter of the log's.
            structlog.processors.format_exc_info,
            _disarm,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
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
    # Libraries tell too much below this: asyncssh logs every packet's fate, apscheduler every ring.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
    # A bell that is late is coalesced into the next one.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def _disarm(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Leave nothing in a text that steers a terminal, whoever wrote it; JSON escapes such characters by itself."""
    return {
        printable(key): printable(value, keep="\n") if isinstance(value, str) else value for key, value in event.items()
    }
