"""The audit log: one JSON object per line, appended and never changed, for every authorized action and every refusal.

- Entries wait in a queue that is bounded for each agent, and a thread writes all waiting entries with one open and one
  write. So agents do not wait for the disk, and no agent can fill the queue for the others: see `room`.
- A batch that cannot be written is kept and tried again. `healthy` is true again only once it is written: a gate that
  requires the audit opens when a waiting entry has been written, not when an empty write succeeds.
- An entry that finds no room is lost and counted; an entry `audit-lost` follows as soon as entries are written again.
- The entries of the file form a hash chain, see audit_chain.py. With a key, it is sealed at intervals and at a stop.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVarTuple, Unpack

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.observability.audit_chain import SEALED, AuditEntry
from tunnelmgr.observability.audit_file import ChainedFile, ChainSettings
from tunnelmgr.observability.audit_writer import AuditWriter, Waiting

log = structlog.get_logger(__name__)

PER_AGENT: Final = 256
"""Entries of one agent that may wait to be written."""
START_PATIENCE: Final = 1.0
"""Seconds that `start` waits for the first write."""
FIRST_SEAL: Final = 30.0
"""Seconds until the first seal, which states the interval; the last seal before the start may state a shorter one."""
RECENTLY: Final = 300.0
"""Seconds for which a lost entry is reported as a fault."""

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
        self._waiting: Counter[AgentId | None] = Counter()
        self._room: dict[AgentId | None, asyncio.Event] = {}
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
            async with asyncio.timeout(START_PATIENCE):
                await tried.wait()

    def close(self, patience: float = 5.0) -> None:
        """Write the waiting entries and a last seal, for at most `patience` seconds."""
        if self._sealer is not None:
            self._sealer.cancel()
            self._seal()
        if self._writer is not None:
            self._writer.close(patience)

    def _seal_again(self) -> None:
        self._seal()
        if self._loop is not None:
            self._sealer = self._loop.call_later(self._chain.interval, self._seal_again)

    def _seal(self) -> None:
        """Add an entry that seals those before it; the writer computes the seal, because only it knows the links."""
        if self._sequence > self._sealed:
            self.note(SEALED, interval=self._chain.interval)
            self._sealed = self._sequence

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

    def _make_room_soon(self, batch: list[Waiting]) -> None:
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
