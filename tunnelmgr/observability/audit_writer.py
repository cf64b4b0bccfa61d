"""The thread that writes the audit log: all waiting entries with one open and one write, again until it succeeds."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.observability.audit_chain import AuditEntry
from tunnelmgr.observability.audit_file import ChainedFile

log = structlog.get_logger(__name__)

BATCH: Final = 1024
"""Entries written with one call, about 600 KiB."""
GATHER: Final = 0.005
"""Seconds that the first waiting entry waits for others, so that many entries need few writes."""
RETRY_INTERVAL: Final = 1.0
"""Seconds between two attempts to write a batch."""
STALLED: Final = 5.0
"""Seconds after which a write that has not ended counts as failed."""

Waiting = tuple[AgentId | None, AuditEntry]


class AuditWriter:
    """Writes entries in a thread of its own, and tells `written` of each batch, in that thread."""

    def __init__(self, name: str, file: ChainedFile, written: Callable[[list[Waiting]], None]) -> None:
        self._name = name
        self._file = file
        self._written = written
        self._entries: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None
        self._tried: Callable[[], None] = lambda: None
        self.error: str | None = None

    @property
    def stalled(self) -> bool:
        """Whether one write has been under way for too long."""
        began = self._busy_since
        return began is not None and time.monotonic() - began > STALLED

    def start(self, tried: Callable[[], None]) -> None:
        """Start the thread; it calls `tried` after each attempt."""
        self._tried = tried
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, entry: Waiting) -> None:
        """Add an entry; returns at once."""
        with self._changed:
            self._entries.append(entry)
            if len(self._entries) == 1:
                self._changed.notify()

    def close(self, patience: float) -> None:
        """Write what waits, for at most `patience` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(patience)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
                self._changed.wait_for(lambda: self._closing, GATHER)
            if not self._write(self._next_batch()):
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, RETRY_INTERVAL):
                        self._write(self._next_batch())  # the last attempt
                        return

    def _next_batch(self) -> list[Waiting]:
        """Return the entries to write next; they stay queued until they are written."""
        return [self._entries[at] for at in range(min(BATCH, len(self._entries)))]

    def _write(self, batch: list[Waiting]) -> bool:
        """Write a batch from the front of the queue; return whether all of it was written."""
        self._busy_since = time.monotonic()
        try:
            whole = self._file.append([entry for _, entry in batch])
        except OSError as failed:
            whole, error = 0, f"{self._name}: {failed.strerror or failed}"
        else:
            error = f"{self._name}: no space left on device" if whole < len(batch) else ""
        finally:
            self._busy_since = None
        for _ in range(whole):
            self._entries.popleft()
        if whole:
            self._written(batch[:whole])
        self._set_error(error)
        self._tried()
        return not error

    def _set_error(self, error: str) -> None:
        if error and self.error is None:
            log.error("audit write failed", error=error)
        elif not error and self.error is not None:
            log.info("audit write recovered")
        self.error = error or None
