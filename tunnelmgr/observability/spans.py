"""Spans and traces as this program has them; `span_export.py` exports them, with OpenTelemetry's SDK."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import getrandbits
from typing import Protocol


class Kind(StrEnum):
    """Which side of a request a span is of, as OpenTelemetry has it."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Span:
    """One span; times are seconds since the epoch. `error` is the code of what failed, empty if nothing did."""

    name: str
    began: float
    ended: float
    kind: Kind = Kind.INTERNAL
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    error: str = ""
    span_id: int = field(default_factory=lambda: getrandbits(64) or 1)


@dataclass(frozen=True, slots=True)
class Trace:
    """A root span, its children, and the trace and span that it is linked to."""

    root: Span
    children: Sequence[Span] = ()
    link: tuple[int, int] | None = None
    trace_id: int = field(default_factory=lambda: getrandbits(128) or 1)


class TraceSink(Protocol):
    """Takes traces; `SpanExport` implements it."""

    def add(self, trace: Trace) -> None:
        """Take a trace that has ended; returns at once."""
        ...
