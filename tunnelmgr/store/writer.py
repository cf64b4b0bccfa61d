"""Writes what has changed in the world in a thread of its own, so that the loop never waits for the disk.

    a change ─▶ a write, in the thread ─▶ done   ─▶ what changed meanwhile is the next write
                                       └▶ failed ─▶ tried again with the next change, or after `RETRY` seconds

At most one write is under way. Each is one transaction with the difference to the last one that succeeded. So after a
crash at any time, the store holds the world as it was when some write began, and the next start continues from there.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.persistence import Changes, changes, is_pinned
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.world import Record, World
from tunnelmgr.errors import StoreError
from tunnelmgr.threads import CallingThread

log = structlog.get_logger(__name__)

RETRY: Final = 5.0
"""Seconds between tries while writes fail and nothing else has changed."""
DROPPED: Final = 1.0
"""Seconds until what a write has left out is tried again; by then this member knows that another one holds it."""
STALLED: Final = 5.0
"""Seconds after which a write that has not ended is reported as an error."""
LAST_WRITE: Final = 5.0
"""Seconds that a stop waits for the last write."""


class WritableStore(Protocol):
    """Writes state; blocks."""

    def write(self, changes: Changes) -> AbstractSet[AgentId]:
        """Write all or nothing, except about the returned agents, which are another member's; raises StoreError."""
        ...


@dataclass(slots=True)
class StateWriter:
    """Knows what the store holds, and updates it; `ended` is called when a write has ended."""

    store: WritableStore
    ended: Callable[[], None]
    _written: World = field(default_factory=World)
    _tried: World = field(default_factory=World)
    _failure: str | None = None
    _again_at: float | None = None
    _task: asyncio.Task[None] | None = None
    _began: float = 0.0
    _thread: CallingThread = field(default_factory=lambda: CallingThread("state write"))

    def start(self, world: World) -> None:
        """Begin with a store that holds this world."""
        self._written = self._tried = world
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._task is not None

    @property
    def error(self) -> str | None:
        """Why the state is not being written, None if it is."""
        if self._failure is None and self.busy and time.monotonic() - self._began > STALLED:
            return "the disk does not answer"
        return self._failure

    @property
    def retry_in(self) -> float | None:
        """Seconds until what was not written is tried again; None if there is nothing."""
        if self._again_at is None or self.busy:
            return None
        # Never zero: if there is nothing left to write, zero would make the loop turn without a pause.
        return max(RETRY / 10, self._again_at - time.monotonic())

    @property
    def written(self) -> World:
        """The world as the store has it."""
        return self._written

    def may_dial(self, record: Record, *, shared: bool) -> bool:
        """Return whether what proves an agent has been written, or a write of it has failed.

        In a `shared` store it must have been written: another member may have given the agent's seed to another agent.
        """
        return is_pinned(self._written if shared else self._tried, record)

    def note_stored(self, records: Sequence[Record], seeds: Sequence[Seed]) -> None:
        """Record that the store holds this already, because other members have written it."""
        if not records and not seeds:
            return
        new, sown = {record.agent.id: record for record in records}, {seed.id: seed for seed in seeds}
        self._written = _with_stored(self._written, new, sown)
        self._tried = _with_stored(self._tried, new, sown)

    def has_written(self, world: World) -> bool:
        """Return whether the store holds everything of `world` that is to be written."""
        return not self.busy and not changes(self._written, world)

    def is_behind(self, world: World) -> bool:
        """Return whether the last write lacks something of `world`."""
        return self._tried.records is not world.records or self._tried.seeds is not world.seeds

    def write(self, world: World, tasks: asyncio.TaskGroup) -> None:
        """Begin to write what has changed, unless a write is under way or the same write has failed moments ago."""
        if self.busy:
            return
        due = changes(self._written, world)
        if due and self._is_worthwhile(world):
            self._began = time.monotonic()
            self._task = tasks.create_task(self._write(due, world), name="state write")

    async def finish(self, world: World) -> None:
        """Write what is not written yet; gives up after `LAST_WRITE` seconds: a stop must not wait for a hung disk."""
        try:
            async with asyncio.timeout(LAST_WRITE):
                if self._task is not None:
                    await asyncio.wait([self._task])
                if due := changes(self._written, world):
                    await self._write(due, world)
        except TimeoutError:
            log.error("state write abandoned", reason="the disk does not answer")  # noqa: TRY400 - no trace needed
            if self._task is not None:
                self._task.cancel()

    def close(self) -> None:
        """End the thread, without waiting for it."""
        self._thread.close()

    def _is_worthwhile(self, world: World) -> bool:
        if self._again_at is None or time.monotonic() >= self._again_at:
            return True
        return bool(changes(self._tried, world))

    async def _write(self, due: Changes, world: World) -> None:
        """Write in the thread; a failed write is reported and tried again. Waits as long as the disk takes."""
        try:
            dropped = await self._thread.call(self.store.write, due)
        except StoreError as failed:
            if self._failure is None:
                log.error("state write failed", error=str(failed))  # noqa: TRY400 - no trace needed
            self._failure, self._again_at = str(failed), time.monotonic() + RETRY
        else:
            if self._failure is not None:
                log.info("state write recovered")
            self._failure, self._again_at = None, time.monotonic() + DROPPED if dropped else None
            self._written = _without(world, dropped, self._written)
        self._tried = world
        self._task = None
        self.ended()


def _without(world: World, dropped: AbstractSet[AgentId], before: World) -> World:
    """Return what the store holds after a write that left out what concerns some agents."""
    if not dropped:
        return world
    kept = {id_: before.records[id_] for id_ in dropped if id_ in before.records}
    records = {id_: record for id_, record in world.records.items() if id_ not in dropped}
    return replace(world, records=records | kept)


def _with_stored(world: World, records: Mapping[AgentId, Record], seeds: Mapping[str, Seed]) -> World:
    return replace(world, records={**world.records, **records}, seeds={**world.seeds, **seeds})
