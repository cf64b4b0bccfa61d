"""How the daemon logs: one line an event on stderr, coloured on a terminal, JSON for a collector."""

import logging
import sys
from enum import StrEnum

import structlog


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
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24)]
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
