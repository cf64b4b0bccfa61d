"""The audit log: one JSON object per line, appended and never changed, for every authorized action and every refusal.

- Entries wait in a queue that is bounded for each agent, and a thread writes all waiting entries with one open and one
  write. So agents do not wait for the disk, and no agent can fill the queue for the others: see `room`.
- A batch that cannot be written is kept and tried again. `healthy` is true again only once it is written: a gate that
  requires the audit opens when a waiting entry has been written, not when an empty write succeeds.
- An entry that finds no room is lost and counted; an entry `audit-lost` follows as soon as entries are written again.
"""

import asyncio
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVarTuple, Unpack

import structlog

from tunnelmgr.core.agent import AgentId

log = structlog.get_logger(__name__)

PER_AGENT: Final = 256
"""Entries of one agent that may wait to be written."""
BATCH: Final = 1024
"""Entries written with one call, about 500 KiB."""
RETRY_INTERVAL: Final = 1.0
"""Seconds between two attempts to write a batch."""
STALLED: Final = 5.0
"""Seconds after which a write that has not ended counts as failed."""
START_PATIENCE: Final = 1.0
"""Seconds that `start` waits for the first write."""
RECENTLY: Final = 300.0
"""Seconds for which a lost entry is reported as a fault."""
MODE: Final = 0o640
_TAIL = 64 * 1024

AuditEntry = dict[str, Any]
Ts = TypeVarTuple("Ts")


class AuditLog:
    """Appends to a file, or to the daemon's log if there is no file.

    Sequence numbers continue from the last line of the file; a lost entry leaves a gap. `sync` returns whether each
    batch must reach the disk (`fsync(2)`).
    """

    def __init__(
        self, file: Path | None, controller: str, clock: Callable[[], float], sync: Callable[[], bool] = lambda: False
    ) -> None:
        self._file = file
        self._controller = controller
        self._clock = clock
        self._sync = sync
        self._sequence = 0
        self._waiting: Counter[AgentId | None] = Counter()
        self._room: dict[AgentId | None, asyncio.Event] = {}
        self._last_loss = float("-inf")
        self._reported = 0  # how many of the lost entries an `audit-lost` entry has reported
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer = _Writer(file, self._written) if file else None
        self.lost = 0

    @property
    def error(self) -> str | None:
        """Why entries are not being written, None if they are."""
        if self._writer is None:
            return None
        return self._writer.error or ("the disk does not answer" if self._writer.stalled else None)

    @property
    def healthy(self) -> bool:
        """Whether entries are being written."""
        return self.error is None

    @property
    def lost_recently(self) -> bool:
        """Whether an entry was lost in the last `RECENTLY` seconds."""
        return self._clock() - self._last_loss < RECENTLY

    async def start(self) -> None:
        """Start writing, and wait briefly for the first entry, which shows whether the file can be written."""
        if self._writer is None:
            return
        self._loop = asyncio.get_running_loop()
        tried = asyncio.Event()
        self.note("audit-started")
        self._writer.start(sync=self._sync, tried=lambda: self._call_on_loop(tried.set))
        with suppress(TimeoutError):
            async with asyncio.timeout(START_PATIENCE):
                await tried.wait()

    def close(self, patience: float = 5.0) -> None:
        """Write the waiting entries, for at most `patience` seconds."""
        if self._writer is not None:
            self._writer.close(patience)

    def note(self, code: str, agent: AgentId | None = None, **facts: Any) -> None:  # noqa: ANN401 - any JSON value
        """Add one entry, caused by `agent` if any; facts that are None are omitted. Returns at once."""
        self._sequence += 1
        now = self._clock()
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: AuditEntry = {"time": stamp, "sequence": self._sequence, "code": code, "controller": self._controller}
        if agent is not None:
            entry["agent"] = agent
        entry |= {name: value for name, value in facts.items() if value is not None}
        if self._writer is None:
            log.info("audit entry written", **{name: value for name, value in entry.items() if name != "time"})
        elif self.full(agent):
            self.lost += 1
            self._last_loss = now
        else:
            self._waiting[agent] += 1
            self._writer.put((agent, entry))

    def full(self, agent: AgentId | None) -> bool:
        """Return whether the next entry of this agent would be lost."""
        return self._waiting[agent] >= PER_AGENT

    async def room(self, agent: AgentId) -> None:
        """Wait until an entry of this agent finds room; without a deadline, which the caller sets."""
        while self.full(agent):
            await self._room.setdefault(agent, asyncio.Event()).wait()

    def _written(self, batch: list[tuple[AgentId | None, AuditEntry]]) -> None:
        """Make room for written entries; called in the writer's thread."""
        self._call_on_loop(self._make_room, Counter(agent for agent, _ in batch))

    def _call_on_loop(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        """Call a function on the loop, from the writer's thread; do nothing if the loop has ended."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _make_room(self, written: Counter[AgentId | None]) -> None:
        for agent, count in written.items():
            self._waiting[agent] -= count
            if self._waiting[agent] <= 0:
                del self._waiting[agent]
            if (waiter := self._room.pop(agent, None)) is not None:
                waiter.set()
        if self.lost > self._reported:
            missing, self._reported = self.lost - self._reported, self.lost
            self.note("audit-lost", count=missing)


class _Writer:
    """The thread that writes the file."""

    def __init__(self, file: Path, written: Callable[[list[tuple[AgentId | None, AuditEntry]]], None]) -> None:
        self._file = file
        self._written = written
        self._entries: deque[tuple[AgentId | None, AuditEntry]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None
        self._sync: Callable[[], bool] = lambda: False
        self._tried: Callable[[], None] = lambda: None
        self._last_sequence = 0  # of the file's last entry before this process
        self.error: str | None = None

    @property
    def stalled(self) -> bool:
        """Whether one write has been under way for too long."""
        began = self._busy_since
        return began is not None and time.monotonic() - began > STALLED

    def start(self, *, sync: Callable[[], bool], tried: Callable[[], None]) -> None:
        self._sync, self._tried = sync, tried
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, entry: tuple[AgentId | None, AuditEntry]) -> None:
        with self._changed:
            self._entries.append(entry)
            self._changed.notify()

    def close(self, patience: float) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(patience)

    def _run(self) -> None:
        self._busy_since = time.monotonic()
        self._last_sequence = _last_sequence(self._file)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closing)
                if not self._entries:
                    return
            if not self._write(self._next_batch()):
                with self._changed:
                    if self._changed.wait_for(lambda: self._closing, RETRY_INTERVAL):
                        self._write(self._next_batch())  # the last attempt
                        return

    def _next_batch(self) -> list[tuple[AgentId | None, AuditEntry]]:
        """Return the entries to write next; they stay queued until they are written."""
        return [self._entries[at] for at in range(min(BATCH, len(self._entries)))]

    def _write(self, batch: list[tuple[AgentId | None, AuditEntry]]) -> bool:
        """Write a batch from the front of the queue; return whether all of it was written."""
        lines = [self._line(entry) for _, entry in batch]
        self._busy_since = time.monotonic()
        try:
            whole = self._append(lines)
        except OSError as failed:
            whole, error = 0, f"{self._file}: {failed.strerror or failed}"
        else:
            error = f"{self._file}: no space left on device" if whole < len(lines) else ""
        finally:
            self._busy_since = None
        for _ in range(whole):
            self._entries.popleft()
        if whole:
            self._written(batch[:whole])
        self._set_error(error)
        self._tried()
        return not error

    def _line(self, entry: AuditEntry) -> bytes:
        numbered = entry | {"sequence": self._last_sequence + entry["sequence"]}
        return json.dumps(numbered, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"

    def _append(self, lines: list[bytes]) -> int:
        """Append whole lines and return how many; the file is opened each time, so that log rotation works."""
        data = b"".join(lines)
        place = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        try:
            if os.fstat(place).st_size == 0:
                os.fchmod(place, MODE)  # readable by its group too, regardless of the daemon's umask
            written = os.write(place, data)
            kept = data.rfind(b"\n", 0, written) + 1
            if kept < written:
                # A partial line must not become the start of the next one.
                os.ftruncate(place, os.fstat(place).st_size - (written - kept))
            if self._sync():
                os.fsync(place)
        finally:
            os.close(place)
        return data.count(b"\n", 0, kept)

    def _set_error(self, error: str) -> None:
        if error and self.error is None:
            log.error("audit write failed", error=error)
        elif not error and self.error is not None:
            log.info("audit write recovered")
        self.error = error or None


def _last_sequence(file: Path) -> int:
    """Return the sequence number of the last whole line, 0 if there is none."""
    try:
        with file.open("rb") as lines:
            lines.seek(0, os.SEEK_END)
            lines.seek(max(0, lines.tell() - _TAIL))
            last = lines.read().rstrip(b"\n").rpartition(b"\n")[2]
        number = json.loads(last)["sequence"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return number if isinstance(number, int) else 0
