"""The thread that writes the audit log: all waiting entries with one open and one write, again until it succeeds."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

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

Waiting = tuple[str | None, AuditEntry]
"""An entry, and the queue in which it waits; see audit_log.py."""


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
        self._error: str | None = None

    @property
    def error(self) -> str | None:
        """Why entries are not being written, None if they are."""
        began = self._busy_since
        if self._thread is not None and not self._thread.is_alive() and not self._closing:
            return f"{self._name}: the thread that writes it has ended; restart tunnelmgr"
        if self._error is None and began is not None and time.monotonic() - began > STALLED:
            return "the disk does not answer"
        return self._error

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

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
                self._changed.wait_for(lambda: self._closing, GATHER)
            if not self._try():
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, RETRY_INTERVAL):
                        self._try()  # the last attempt
                        return

    def _next_batch(self) -> list[Waiting]:
        """Return the entries to write next; they stay queued until they are written."""
        return [self._entries[at] for at in range(min(BATCH, len(self._entries)))]

    def _try(self) -> bool:
        """Write the next batch; return whether all of it was written."""
        error: str | None = None
        self._busy_since = time.monotonic()
        try:
            if not self._write(self._next_batch()):
                error = f"{self._name}: no space left on device"
        except OSError as failed:
            error = f"{self._name}: {failed.strerror or failed}"
        except Exception as failed:  # a bulkhead: without its thread, the log would end unnoticed
            error = f"{self._name}: unexpected {type(failed).__name__}: {failed}"
            if error != self._error:
                log.exception("audit writer crashed")
        finally:
            self._busy_since = None
        self._set_error(error)
        self._tried()
        return error is None

    def _write(self, batch: list[Waiting]) -> bool:
        """Write a batch from the front of the queue; return whether all of it was written."""
        whole = self._file.append([entry for _, entry in batch])
        for _ in range(whole):
            self._entries.popleft()
        if whole:
            self._written(batch[:whole])
        return whole == len(batch)

    def _set_error(self, error: str | None) -> None:
        if error is not None and self._error is None:
            log.error("audit write failed", error=error)
        elif error is None and self._error is not None:
            log.info("audit write recovered")
        self._error = error
