"""The loop beside a disk that does not answer: what continues, what waits, and what the next start finds."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.controller_harness import KEY, OTHER_KEY, A, B, ControllerHarness, running
from tunnelmgr.controller import Controller, Performers
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import AgentEnded, AgentsDiscovered, DrainRequested, Event, EvidenceFound, TunnelEnded
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import Record
from tunnelmgr.errors import Pace
from tunnelmgr.store import writer
from tunnelmgr.store.sqlite import SqliteStore

BOTH = AgentsDiscovered("cloud", Snapshot(frozenset({A, B})))


@dataclass
class SlowDisk(ControllerHarness):
    """A controller whose state is in a real SQLite file on a disk that answers only while `flowing` is set."""

    file: Path = Path()
    flowing: threading.Event = field(default_factory=threading.Event)
    under_way: int = 0
    most_under_way: int = 0
    real: SqliteStore = field(init=False)

    def __post_init__(self) -> None:
        self.real = SqliteStore(self.file)
        self.flowing.set()
        super().__post_init__()

    def write(self, changes: Changes) -> None:
        """Write once the disk answers."""
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.flowing.wait(10)
        self.real.write(changes)
        self.under_way -= 1
        super().write(changes)

    async def stall(self, *events: Event) -> None:
        """Let the disk hang in the write that these events cause."""
        self.flowing.clear()
        self.report(*events)
        await self.until(lambda: self.under_way == 1)

    def on_disk(self) -> dict[AgentId, Record]:
        """Return what a start would find."""
        return dict(self.real.load().records)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowDisk]:
    """Make a controller on such a disk; nothing hangs once the test is over."""
    harness = SlowDisk(file=tmp_path / "state.db")
    yield harness
    harness.flowing.set()
    harness.real.close()


async def test_a_stalled_write_delays_no_revocation(slow: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ended agent is revoked in the turn that takes the event, while a write still hangs."""
    turns: list[int] = []
    apply = Controller._apply

    def counted(self: Controller, events: list[Event]) -> None:
        turns.append(len(events))
        apply(self, events)

    monkeypatch.setattr(Controller, "_apply", counted)
    async with running(slow):
        await slow.bring_up(A)
        await slow.stall(BOTH)
        turns.clear()

        slow.report(AgentEnded("cloud", A.id, "its source says so"))
        await slow.until_done("close cloud:a REVOKE")

        assert turns == [1]
        assert slow.under_way == 1
        slow.flowing.set()


async def test_new_evidence_is_on_disk_before_its_agent_is_dialled(slow: SlowDisk) -> None:
    """An agent with new evidence is not dialled before the evidence is on disk, however long the disk takes."""
    async with running(slow):
        await slow.bring_up(A)
        await slow.stall(BOTH)
        slow.report(EvidenceFound(B.id, "1", HostTrust(Method.CONSOLE, (OTHER_KEY,))))
        await slow.until(lambda: slow.controller.world.status(B.id).phase is Phase.DOWN)
        slow.report(AgentEnded("cloud", A.id, "a turn in which the agent could have been dialled"))
        await slow.until_done("close cloud:a REVOKE")
        before = list(slow.done)

        slow.flowing.set()
        await slow.until_done("open b 1")

        assert "open b 1" not in before
        proved = slow.on_disk()[B.id].proved
        assert proved is not None
        assert proved.keys == (OTHER_KEY,)


async def test_an_agent_whose_key_is_on_disk_is_dialled_again_during_a_stall(slow: SlowDisk) -> None:
    """An agent whose evidence is already on disk is dialled while a write hangs."""
    async with running(slow):
        await slow.bring_up(A)
        await slow.stall(BOTH)

        slow.report(TunnelEnded(A.id, 1, Failure("lost", Pace.SOON, "gone")))
        await slow.until(lambda: slow.controller.world.status(A.id).phase is Phase.DOWN)
        slow.now += 3600
        slow.report(BOTH)
        await slow.until_done("open a 2")

        assert slow.under_way == 1
        slow.flowing.set()


async def test_changes_during_a_write_are_in_the_next_one(slow: SlowDisk) -> None:
    """One write is under way at a time, and the next one has the changes since it began."""
    async with running(slow):
        await slow.bring_up(A)
        await slow.stall(BOTH)
        slow.report(AgentEnded("cloud", A.id, "over"))
        await slow.until_done("close cloud:a REVOKE")
        assert (slow.on_disk().keys(), slow.on_disk()[A.id].present) == ({A.id}, True)

        slow.flowing.set()
        await slow.until(lambda: slow.on_disk().keys() == {A.id, B.id} and not slow.on_disk()[A.id].present)

    assert slow.most_under_way == 1


async def test_a_disk_that_hangs_is_shown_until_it_answers(slow: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`store_error` says that the disk does not answer while a write hangs, and no longer."""
    monkeypatch.setattr(writer, "STALLED", 0.01)
    async with running(slow):
        await slow.bring_up(A)
        await slow.stall(BOTH)

        await slow.until(lambda: slow.controller.store_error == "the disk does not answer")
        slow.flowing.set()
        await slow.until(lambda: slow.controller.store_error is None)


async def test_a_stop_does_not_wait_for_a_disk_that_hangs(slow: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process stops although a write hangs, and the log says that the last changes are not on disk."""
    monkeypatch.setattr(writer, "LAST_WRITE", 0.05)
    with capture_logs() as logs:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(slow.controller.run(Performers(slow, slow), slow), name="controller")
            await slow.bring_up(A)
            await slow.stall(BOTH)
            slow.report(DrainRequested())
            await slow.until_done("close cloud:a DRAIN")
            slow.report(TunnelEnded(A.id, 1, None))

    assert "state write abandoned" in [entry["event"] for entry in logs]
    proved = slow.on_disk()[A.id].proved
    assert proved is not None
    assert proved.keys == (KEY,)
