"""The audit log: one JSON object a line, appended and never changed, for every authorised action and every refusal.

Writing never holds up a pull: entries wait in a bounded queue for a thread of its own. What cannot be written is
counted and shown; `healthy` lets the gate refuse instead, where the configuration asks for that.
"""

import json
import os
import queue
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)

WAITING = 10_000
"""Entries that may wait to be written; what comes on top is lost, and counted."""
TRY_AGAIN = 1.0
"""Seconds between two looks at a file that could not be written."""
MODE = 0o640
_TAIL = 64 * 1024


class AuditLog:
    """Appends to a file, or to the ordinary log where there is none.

    Sequence numbers go on from the last line of the file, so that a missing line shows.
    """

    def __init__(self, file: Path | None, controller: str, clock: Callable[[], float]) -> None:
        self._file = file
        self._controller = controller
        self._clock = clock
        self._entries: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._sequence = _last_sequence(file) if file else 0
        self._thread: threading.Thread | None = None
        self.error: str | None = None
        self.lost = 0

    @property
    def healthy(self) -> bool:
        """Tell whether entries are being written."""
        return self.error is None and self._entries.qsize() < WAITING

    def start(self) -> None:
        """Begin to write; find out at once whether the file can be written."""
        if self._file is None:
            return
        self._append(b"")
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def close(self, patience: float = 5.0) -> None:
        """Write what waits, for at most `patience` seconds."""
        if self._thread is not None:
            self._entries.put(None)
            self._thread.join(patience)

    def note(self, code: str, **facts: Any) -> None:  # noqa: ANN401 - any JSON value
        """Add one entry; facts that are None are left out. Returns at once."""
        self._sequence += 1  # a lost entry leaves a gap
        if self._entries.qsize() >= WAITING:
            self.lost += 1
            return
        time = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {name: value for name, value in facts.items() if value is not None}
        entry = {"time": time, "sequence": self._sequence, "code": code, "controller": self._controller, **told}
        if self._file is None:
            log.info("audit", **{name: value for name, value in entry.items() if name != "time"})
        else:
            self._entries.put(entry)

    def _write_all(self) -> None:
        while (entry := self._next()) is not None:
            line = json.dumps(entry, ensure_ascii=True, separators=(",", ":")) + "\n"
            if not self._append(line.encode()):
                self.lost += 1

    def _next(self) -> dict[str, Any] | None:
        """Return the next entry; while the file cannot be written, try it now and then until one comes."""
        while True:
            try:
                return self._entries.get(timeout=TRY_AGAIN if self.error else None)
            except queue.Empty:
                self._append(b"")

    def _append(self, data: bytes) -> bool:
        """Append whole lines; opened anew each time, so that a rotated file is left alone."""
        if self._file is None:
            return False
        try:
            place = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
            try:
                if os.fstat(place).st_size == 0:
                    os.fchmod(place, MODE)  # for its group too, whatever the daemon's umask
                written = os.write(place, data)
                if written < len(data):
                    # Half a line must not become the beginning of the next one.
                    os.ftruncate(place, os.fstat(place).st_size - written)
                    raise OSError(28, "no space left on device")
            finally:
                os.close(place)
        except OSError as failed:
            self._failed(f"{self._file}: {failed.strerror}")
            return False
        if self.error is not None:
            log.info("audit is written again", lost=self.lost)
            self.error = None
        return True

    def _failed(self, error: str) -> None:
        if self.error is None:
            log.error("audit cannot be written", error=error)
        self.error = error


def _last_sequence(file: Path) -> int:
    """Return the sequence number of the last whole line, 0 where there is none."""
    try:
        with file.open("rb") as lines:
            lines.seek(0, os.SEEK_END)
            lines.seek(max(0, lines.tell() - _TAIL))
            last = lines.read().rstrip(b"\n").rpartition(b"\n")[2]
        number = json.loads(last)["sequence"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return number if isinstance(number, int) else 0
