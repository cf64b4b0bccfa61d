"""Sends a copy of each audit entry to a collector, at least once and in order, from a thread of its own.

The thread reads the audit log's files behind the writer, so a collector that does not answer delays nothing else: what
it lacks stays in the files. The cursor moves only once the collector has confirmed; after a failure, everything since
the cursor is sent again. So entries may arrive twice, and their numbers tell.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from tunnelmgr.core.health import AuditForwardHealth
from tunnelmgr.core.sanitize import error_text
from tunnelmgr.observability.audit_chain import Head
from tunnelmgr.observability.audit_cursor import Cursor
from tunnelmgr.observability.audit_tail import AuditTail, Copied

log = structlog.get_logger(__name__)

BATCH: Final = 1000
"""Entries that are sent at a time."""
POLL: Final = 0.25
"""Seconds between two looks for new entries."""
UNCONFIRMED: Final = 10_000
"""Entries after which the collector must confirm."""
CONFIRM_AFTER: Final = 5.0
"""Seconds after which the collector must confirm, while there are always new entries."""
IDLE: Final = 1.0
"""Seconds without a new entry after which the collector must confirm."""
RETRY_MIN: Final = 1.0
RETRY_MAX: Final = 60.0
"""Seconds between two attempts: the first, and the longest."""


class ForwardError(Exception):
    """A collector could not be reached, or did not take the entries; `wait` is the seconds that it asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(reason)


class Destination(Protocol):
    """A collector. Its methods block, and raise ForwardError."""

    def send(self, entries: Sequence[Copied]) -> bool:
        """Send entries; return whether the collector has confirmed all that was sent."""
        ...

    def confirm(self) -> None:
        """Return once the collector has confirmed all that was sent."""
        ...

    def close(self) -> None:
        """Close the connection at once."""
        ...


class AuditForward:
    """Forwards the audit log to one destination."""

    def __init__(self, name: str, tail: AuditTail, cursor: Cursor, make: Callable[[], Destination]) -> None:
        self.name = name
        self._tail = tail
        self._cursor = cursor
        self._make = make
        self._confirmed = cursor.load()
        self._error: str | None = None
        self._success_at: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"audit forward {name}", daemon=True)

    @property
    def confirmed(self) -> Head:
        """The last entry that the collector has for certain."""
        return self._confirmed or Head()

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def health(self, written: int) -> AuditForwardHealth:
        """Return how far this destination has got; `written` is the number of the last entry of the log."""
        has = self.confirmed.sequence
        return AuditForwardHealth(
            self.name, self._error, has, max(0, written - has), self._tail.dropped, self._success_at
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Have the thread send what is left, unless the collector fails, and end."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, for at most `timeout` seconds."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        wait = 0.0
        while not self._stopping.wait(wait):
            try:
                wait = self._forward(wait)
            except Exception:  # a bulkhead: without its thread, a destination would fall behind unnoticed
                log.exception("audit forward crashed", destination=self.name)
                self._error, wait = "an unexpected error, see the log", RETRY_MAX
        self._tail.close()

    def _forward(self, waited: float) -> float:
        """Forward until the collector fails, or until a stop; return the seconds to wait before the next attempt."""
        destination = self._make()
        try:
            self._forward_to(destination)
        except (ForwardError, OSError) as failed:
            self._fail(error_text(failed))
            asked = failed.wait if isinstance(failed, ForwardError) else 0.0
            pause = min(RETRY_MAX, max(RETRY_MIN, 2 * waited))
            return max(asked, pause * random.uniform(0.75, 1.0))  # noqa: S311 - spreads retries, no secret
        finally:
            destination.close()
        return 0.0

    def _forward_to(self, destination: Destination) -> None:
        self._rewind()
        pending, first, last = 0, 0.0, 0.0
        while True:
            stopping = self._stopping.is_set()  # asked before the read, which then finds everything that was written
            entries = self._read()
            now = time.monotonic()
            if entries:
                first, last = (first if pending else now), now
                pending = 0 if destination.send(entries) else pending + len(entries)
            idle = not entries and (stopping or now - last > IDLE)
            if pending and (idle or pending >= UNCONFIRMED or now - first > CONFIRM_AFTER):
                destination.confirm()
                pending = 0
            if not pending:
                self._succeed()
            if not entries and stopping:
                return
            if not entries:
                self._stopping.wait(POLL)

    def _rewind(self) -> None:
        """Continue after what the collector has; a new one gets the file that is written now, from its beginning."""
        if self._confirmed is None and (beginning := self._tail.beginning()) is not None:
            self._cursor.save(beginning)
            self._confirmed = beginning
        if self._confirmed is not None:
            self._tail.rewind(self._confirmed)

    def _read(self) -> list[Copied]:
        if self._confirmed is None:
            self._rewind()
        before = self._tail.dropped
        entries = self._tail.read(BATCH)
        if (count := self._tail.dropped - before) > 0:
            log.error("audit entries not forwarded", destination=self.name, count=count)
        return entries

    def _succeed(self) -> None:
        """Record that the collector has everything that was read."""
        if self._tail.position != self._confirmed and self._tail.position is not None:
            self._cursor.save(self._tail.position)
            self._confirmed, self._success_at = self._tail.position, time.time()
        if self._error is not None:
            self._error = None
            log.info("audit forward recovered", destination=self.name)

    def _fail(self, error: str) -> None:
        if self._error is None:
            log.warning("audit forward failed", destination=self.name, error=error)
        self._error = error
