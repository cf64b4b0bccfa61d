"""The audit log: one JSON object per line, appended and never changed, for every authorized action and every refusal.

- Entries wait in queues, and a thread writes all waiting entries with one open and one write. So agents do not wait for
  the disk. Each agent and each caller of the API has a bounded queue, so that none can fill it for the others: see
  `room`. In the queue of the log's own entries, there is always room for `audit-lost` and for the last seal.
- A batch that cannot be written is kept and tried again. `healthy` is true again only once it is written: a gate that
  requires the audit opens when a waiting entry has been written, not when an empty write succeeds.
- An entry that finds no room is lost and counted; an entry `audit-lost` follows as soon as entries are written again.
- The entries of the file form a hash chain, see audit_chain.py. With a key, it is sealed at intervals and at a stop.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVarTuple, Unpack

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.observability.audit_chain import SEALED, AuditEntry
from tunnelmgr.observability.audit_file import ChainedFile, ChainSettings
from tunnelmgr.observability.audit_writer import AuditWriter, Waiting

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 256
"""Entries of one queue that may wait to be written."""
MAX_TEXT: Final = 4096
"""Characters of one value. JSON has at most 12 bytes for one, so that an entry with 20 texts is within MAX_LINE."""
START_TIMEOUT: Final = 1.0
"""Seconds that `start` waits for the first write."""
FIRST_SEAL: Final = 30.0
"""Seconds until the first seal, which states the interval; the last seal before the start may state a shorter one."""
RECENTLY: Final = 300.0
"""Seconds for which a lost entry is reported as a fault."""

Fact = str | float | None
Ts = TypeVarTuple("Ts")


class AuditLog:
    """Appends to a file, or to the daemon's log if there is no file.

    Sequence numbers continue from the last line of the file; a lost entry leaves a gap. `sync` returns whether each
    batch must reach the disk (`fsync(2)`).
    """

    def __init__(
        self,
        file: Path | None,
        controller: str,
        clock: Callable[[], float],
        sync: Callable[[], bool] = lambda: False,
        chain: ChainSettings = ChainSettings(),  # noqa: B008 - a frozen value
    ) -> None:
        self._controller = controller
        self._clock = clock
        self._chain = chain
        self._sequence = 0
        self._waiting: Counter[str | None] = Counter()  # by queue; None is that of the log's own entries
        self._room: dict[str | None, asyncio.Event] = {}
        self._last_loss = float("-inf")
        self._reported = 0  # how many of the lost entries an `audit-lost` entry has reported
        self._sealed = 0  # the last entry that a seal covers, as numbered here
        self._sealer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._chained = ChainedFile(file, chain, sync) if file else None
        self._writer = AuditWriter(str(file), self._chained, self._make_room_soon) if self._chained else None
        self.lost = 0

    @property
    def error(self) -> str | None:
        """Why entries are not being written, None if they are."""
        return self._writer.error if self._writer else None

    @property
    def healthy(self) -> bool:
        """Whether entries are being written."""
        return self.error is None

    @property
    def lost_recently(self) -> bool:
        """Whether an entry was lost in the last `RECENTLY` seconds."""
        return self._clock() - self._last_loss < RECENTLY

    @property
    def written(self) -> int:
        """The number of the last entry in the file; 0 until one has been written, and without a file."""
        return self._chained.written if self._chained else 0

    async def start(self) -> None:
        """Start writing, and wait briefly for the first entry, which shows whether the file can be written."""
        if self._writer is None:
            return
        self._loop = asyncio.get_running_loop()
        tried = asyncio.Event()
        self.note("audit-started")
        self._writer.start(lambda: self._call_on_loop(tried.set))
        if self._chain.signer is not None:
            self._sealer = self._loop.call_later(min(FIRST_SEAL, self._chain.interval), self._seal_again)
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                await tried.wait()

    def close(self, timeout: float = 5.0) -> None:
        """Write the waiting entries and a last seal, for at most `timeout` seconds."""
        self._report_lost()
        if self._sealer is not None:
            self._sealer.cancel()
            self._seal()
        if self._writer is not None:
            self._writer.close(timeout)

    def _seal_again(self) -> None:
        if self._waiting[None] < MAX_WAITING // 2:  # while the disk fails, seals leave room for other entries
            self._seal()
        if self._loop is not None:
            self._sealer = self._loop.call_later(self._chain.interval, self._seal_again)

    def _seal(self) -> None:
        """Add an entry that seals those before it; the writer computes the seal, because only it knows the links."""
        if self._sequence > self._sealed:
            self.note(SEALED, interval=self._chain.interval)
            self._sealed = self._sequence

    def note(self, code: str, agent: AgentId | None = None, **facts: Fact) -> None:
        """Add one entry, caused by `agent` or by the API's caller `who`, if any. Returns at once.

        Facts that are None are omitted, and texts that are too long are cut.
        """
        self._sequence += 1
        now = self._clock()
        entry: AuditEntry = {
            "time": timestamp(now),
            "sequence": self._sequence,
            "code": code,
            "controller": self._controller,
        }
        if agent is not None:
            entry["agent"] = agent
        entry |= {name: _cut(value) for name, value in facts.items() if value is not None}
        queue = _queue(agent, facts.get("who"))
        if self._writer is None:
            log.info("audit entry written", **{name: value for name, value in entry.items() if name != "time"})
        elif self.full(queue):
            self.lost += 1
            self._last_loss = now
        else:
            self._waiting[queue] += 1
            self._writer.put((queue, entry))

    def full(self, queue: str | None) -> bool:
        """Return whether the next entry in this queue would be lost; that of an agent has its id."""
        return self._waiting[queue] >= MAX_WAITING

    async def room(self, agent: AgentId) -> None:
        """Wait until an entry of this agent finds room; without a deadline, which the caller sets."""
        while self.full(agent):
            await self._room.setdefault(agent, asyncio.Event()).wait()

    def _make_room_soon(self, batch: list[Waiting]) -> None:
        """Make room for written entries; called in the writer's thread."""
        self._call_on_loop(self._make_room, Counter(queue for queue, _ in batch))

    def _call_on_loop(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        """Call a function on the loop, from the writer's thread; do nothing if the loop has ended."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(callback, *args)

    def _make_room(self, written: Counter[str | None]) -> None:
        for queue, count in written.items():
            self._waiting[queue] -= count
            if self._waiting[queue] <= 0:
                del self._waiting[queue]
            if (waiter := self._room.pop(queue, None)) is not None:
                waiter.set()
        self._report_lost()

    def _report_lost(self) -> None:
        """Add an entry that counts the lost entries that none has counted; without room, the next call does so."""
        if self.lost > self._reported and self._waiting[None] < MAX_WAITING - 1:  # the last seal has room too
            missing, self._reported = self.lost - self._reported, self.lost
            self.note("audit-lost", count=missing)


def _queue(agent: AgentId | None, who: object) -> str | None:
    """Return the queue of an entry: that of the agent or of the API's caller, or None for the log's own entries."""
    return agent if agent is not None or who is None else f"caller {who}"


def _cut(value: Fact) -> Fact:
    """Return a value that is not too long, and that says so if it was cut."""
    if not isinstance(value, str) or len(value) <= MAX_TEXT:
        return value
    return f"{value[:MAX_TEXT]} [cut from {len(value)} characters]"
