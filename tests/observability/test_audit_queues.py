"""The queues of the audit log: who waits in which, and that each loss is reported."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.observability.disk import Disk
from tests.observability.sealed_log import SealedLog, entries
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.observability.audit_log import MAX_WAITING
from tunnelmgr.observability.audit_writer import BATCH

AGENT = AgentId("ec2:i-1")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Make a disk that the test can stall."""
    disk = Disk(monkeypatch)
    yield disk
    disk.free.set()


def reported(file: Path) -> int:
    """Return how many lost entries the log counts."""
    return sum(entry["count"] for entry in entries(file) if entry["code"] == "audit-lost")


async def test_a_loss_is_reported_only_once_there_is_room_for_its_entry(sealed: SealedLog, disk: Disk) -> None:
    """While the queue of the log's own entries is full, its entry about the loss waits, and its count stays right."""
    log = await sealed.start()
    disk.free.clear()
    for number in range(BATCH):
        log.note("entry", AgentId(f"ec2:i-{number}"))
    for _ in range(MAX_WAITING + 5):
        log.note("own")

    disk.free.set()
    await until(lambda: not log._waiting)
    log.close()

    assert log.lost == 5
    assert reported(sealed.file) == 5


async def test_a_loss_is_reported_at_a_stop(sealed: SealedLog, disk: Disk) -> None:
    """A stop reports the entries that were lost before it, although the loop runs no callback until its end."""
    log = await sealed.start()
    disk.free.clear()
    for _ in range(MAX_WAITING + 5):
        log.note("flood", AGENT)

    disk.free.set()
    log.close()

    assert reported(sealed.file) == 5
    assert [entry["code"] for entry in entries(sealed.file)][-2:] == ["audit-lost", "audit-sealed"]


async def test_a_caller_of_the_api_cannot_fill_the_queue_of_others(sealed: SealedLog, disk: Disk) -> None:
    """Each caller has room of its own, and neither another one nor the log itself loses an entry."""
    log = await sealed.start()
    disk.free.clear()
    for _ in range(MAX_WAITING + 5):
        log.note("operator-request", who="uid 1000", path="/v1/reload")
    log.note("operator-request", who="ci", path="/v1/reload")

    disk.free.set()
    log.close()

    assert log.lost == 5
    codes = [(entry["code"], entry.get("who")) for entry in entries(sealed.file)]
    assert codes.count(("operator-request", "uid 1000")) == MAX_WAITING
    assert codes[-3:] == [("operator-request", "ci"), ("audit-lost", None), ("audit-sealed", None)]


async def test_seals_leave_room_for_the_last_one(sealed: SealedLog, disk: Disk) -> None:
    """However long the disk fails, the seals of that time do not keep the seal of the stop out."""
    log = await sealed.start()
    disk.free.clear()
    for _ in range(2 * MAX_WAITING):
        log.note("flood", AGENT)
        log._seal_again()

    disk.free.set()
    log.close()

    assert entries(sealed.file)[-1]["code"] == "audit-sealed"
    assert log.lost == reported(sealed.file) == MAX_WAITING
    assert sealed.verdict().notes[-1].startswith("sealed to the end")
