"""The loop beside a disk that does not answer: what continues, what waits, and what the next start finds."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.controller_harness import KEY, OTHER_KEY, RULES, A, B, ControllerHarness, running
from tunnelmgr.controller import Controller, Performers
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.events import (
    AgentEnded,
    AgentsDiscovered,
    DrainRequested,
    Event,
    EvidenceFound,
    Reconfigured,
    RetryRequested,
    TunnelEnded,
)
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.ownership import Lease
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import Record, World
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

    def write(self, changes: Changes) -> frozenset[AgentId]:
        """Write once the disk answers."""
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.flowing.wait(10)
        self.real.write(changes)
        self.under_way -= 1
        return super().write(changes)

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


async def test_what_a_shared_store_left_out_is_written_again_and_not_dialled_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent may be another member's by now, or its seed another agent's: it is dialled once the store has it."""
    monkeypatch.setattr(writer, "DROPPED", 0.05)
    harness = ControllerHarness(drops={A.id})
    leases = {A.id: Lease("me", 1), B.id: Lease("me", 1)}
    harness.controller.world = World(cluster=Cluster("me", agents=leases, expires=1e12))
    async with running(harness):
        harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A, B}))))
        await harness.until_done("seek b")
        for one, key in ((A, KEY), (B, OTHER_KEY)):
            harness.report(EvidenceFound(one.id, "1", HostTrust(Method.CONSOLE, (key,))))
        await harness.until_done("open b 1")
        await harness.until(lambda: len(harness.steps("write")) > 3)

        assert harness.steps("open") == ["open b 1"]
        assert not harness.controller.has_written
        harness.drops.clear()
        await harness.until_done("open a 1")
        await harness.until(lambda: harness.controller.has_written)
        assert harness.controller.written.records.keys() == {A.id, B.id}


async def test_a_shared_store_that_fails_lets_nobody_be_dialled_by_new_evidence(slow: SlowDisk) -> None:
    """A controller with a file dials an agent although its evidence could not be written; a member waits."""
    leases = {A.id: Lease("me", 1)}
    slow.controller.world = World(cluster=Cluster("me", agents=leases, expires=1e12))
    slow.store_fails = "the database does not answer"
    async with running(slow):
        slow.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await slow.until_done("seek a")
        slow.report(EvidenceFound(A.id, "1", HostTrust(Method.CONSOLE, (KEY,))))
        await slow.until(lambda: slow.steps("write failed") != [])
        slow.report(RetryRequested(A.id))
        await slow.until(lambda: len(slow.steps("write failed")) > 1)
        assert slow.steps("open") == []

        slow.store_fails = None
        slow.report(RetryRequested(A.id))
        await slow.until_done("open a 1")
