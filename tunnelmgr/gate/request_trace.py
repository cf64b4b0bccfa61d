"""The stages of a request that is traced; `daemon/tracing.py` makes spans of them when the request has ended.

A trace begins here, never at an agent: what it sends as its own context (`traceparent`, W3C Trace Context) is dropped
with all other fields that the gate does not know. The registry gets the context of the gate's own span.
"""

import random
import time
from dataclasses import dataclass, field
from enum import StrEnum


class Stage(StrEnum):
    """What a request does or waits for; each stage ends when the next one begins, the last one with the request."""

    READ = "read head"
    DECIDE = "decide"
    LIMIT = "wait for limit"
    CACHE = "cache"
    REGISTRY = "registry"
    RESPOND = "respond"


def _new_id(bits: int) -> int:
    """Return an identifier, which must not be zero (W3C Trace Context, section 3.2.2)."""
    return random.getrandbits(bits) or 1


@dataclass(slots=True)
class RequestTrace:
    """The identifiers of a request's trace, and when each stage began, by the monotonic clock."""

    trace_id: int = field(default_factory=lambda: _new_id(128))
    root_id: int = field(default_factory=lambda: _new_id(64))
    registry_id: int = field(default_factory=lambda: _new_id(64))
    stages: list[tuple[Stage, float]] = field(default_factory=list)

    def enter(self, stage: Stage) -> None:
        """Begin a stage."""
        self.stages.append((stage, time.monotonic()))

    @property
    def traceparent(self) -> bytes:
        """The context for the registry: its spans are children of the stage that waits for it."""
        return b"00-%032x-%016x-01" % (self.trace_id, self.registry_id)
