"""The audit log: whole lines, numbered without gaps, and a fault if it cannot be written."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.observability.disk import Disk
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.observability import audit_log, audit_writer
from tunnelmgr.observability.audit_log import MAX_WAITING, RECENTLY, AuditLog

NOW = 1_700_000_000.0
ONE, OTHER = AgentId("ec2:i-1"), AgentId("ec2:i-2")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name the file."""
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def log(file: Path) -> AsyncIterator[AuditLog]:
    """Start a log that writes to the file."""
    log = AuditLog(file, "registry-1", lambda: NOW)
    await log.start()
    yield log
    log.close()


def entries(file: Path) -> list[dict[str, Any]]:
    """Return the entries without `audit-started`."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [entry for entry in found if entry["code"] != "audit-started"]


async def test_an_entry_is_one_line_with_time_number_code_and_facts(log: AuditLog, file: Path) -> None:
    """Each entry has time, sequence, code, agent and controller; unknown facts are omitted."""
    log.note("request-allowed", ONE, repository="team/app", reference=None)
    log.close()

    assert entries(file) == [
        {
            "time": "2023-11-14T22:13:20.000Z",
            "sequence": 2,
            "code": "request-allowed",
            "controller": "registry-1",
            "agent": "ec2:i-1",
            "repository": "team/app",
            "link": entries(file)[0]["link"],
        }
    ]


async def test_a_start_is_an_entry(log: AuditLog, file: Path) -> None:
    """`audit-started` is the first entry of a process, and shows whether the file can be written."""
    log.close()

    assert json.loads(file.read_text())["code"] == "audit-started"


async def test_numbers_continue_after_a_restart(log: AuditLog, file: Path) -> None:
    """A second process continues the numbers of the first, so that a missing line shows."""
    log.note("one")
    log.close()

    again = AuditLog(file, "registry-1", lambda: NOW)
    await again.start()
    again.note("two")
    again.close()

    assert [(entry["sequence"], entry["code"]) for entry in entries(file)] == [(2, "one"), (4, "two")]


@pytest.mark.parametrize("spoilt", ["", "no json\n", '{"sequence": "7"}\n', "[]\n"])
async def test_a_damaged_last_line_restarts_the_numbers(file: Path, spoilt: str) -> None:
    """A last line that is not an entry gives no number, and is not changed."""
    file.write_text(spoilt)

    log = AuditLog(file, "registry-1", lambda: NOW)
    await log.start()
    log.close()

    assert file.read_text().startswith(spoilt)
    assert json.loads(file.read_text().splitlines()[-1])["sequence"] == 1


async def test_a_rotated_file_is_left_alone_and_a_new_one_is_created(log: AuditLog, file: Path) -> None:
    """After logrotate has moved the file, entries go to a new file of the old name."""
    log.note("before")
    await until(lambda: entries(file))
    file.rename(file.with_suffix(".1"))

    log.note("after")
    log.close()

    assert [entry["code"] for entry in entries(file.with_suffix(".1"))] == ["before"]
    assert [entry["code"] for entry in entries(file)] == ["after"]


async def test_waiting_entries_are_written_with_one_call(
    log: AuditLog, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of entries causes one write per batch."""
    disk = Disk(monkeypatch)
    disk.free.clear()
    log.note("first")
    await until(lambda: log._writer is not None and log._writer._busy_since)

    for number in range(100):
        log.note("entry", AgentId(f"ec2:i-{number}"))
    disk.free.set()
    log.close()

    assert len(entries(file)) == 101
    assert len(disk.sizes) <= 3


async def test_one_agent_cannot_fill_the_queue_for_another(
    log: AuditLog, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each agent has room of its own; entries beyond it are lost, counted, and reported by an entry."""
    disk = Disk(monkeypatch)
    disk.free.clear()
    for _ in range(MAX_WAITING + 5):
        log.note("flood", ONE)
    log.note("small", OTHER)

    assert log.lost == 5
    assert log.full(ONE)
    assert not log.full(OTHER)
    disk.free.set()
    await until(lambda: "audit-lost" in file.read_text())
    codes = [entry["code"] for entry in entries(file)]
    assert codes.count("flood") == MAX_WAITING
    assert codes.count("small") == 1
    assert entries(file)[-1]["count"] == 5
    missing = set(range(1, entries(file)[-1]["sequence"])) - {entry["sequence"] for entry in entries(file)} - {1}
    assert len(missing) == 5  # what is lost leaves a gap in the numbers


async def test_an_agent_waits_for_room_until_its_entries_are_written(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent that fills its queue waits, and no other agent does."""
    disk = Disk(monkeypatch)
    disk.free.clear()
    for _ in range(MAX_WAITING):
        log.note("flood", ONE)

    async with asyncio.timeout(10):
        await log.room(OTHER)
        waiting = asyncio.ensure_future(log.room(ONE))  # noqa: TID251 - ended below
        await asyncio.sleep(0)
        assert not waiting.done()
        disk.free.set()
        await waiting

    assert not log.full(ONE)


async def test_a_lost_entry_is_a_fault_for_some_minutes(file: Path) -> None:
    """A lost entry is reported as a fault for some minutes."""
    now = NOW
    log = AuditLog(file, "registry-1", lambda: now)  # not started: nothing is taken from the queue
    for _ in range(MAX_WAITING + 1):
        log.note("flood", ONE)

    assert log.lost_recently
    now += RECENTLY + 1
    assert not log.lost_recently


async def test_a_file_that_cannot_be_written_is_a_fault_and_nothing_is_lost(
    log: AuditLog, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing file is reported; entries wait, and are written once the file can be written."""
    monkeypatch.setattr(audit_writer, "RETRY_INTERVAL", 0.01)
    disk = Disk(monkeypatch)
    disk.full = True
    with capture_logs() as logged:
        log.note("due")
        await until(lambda: not log.healthy)
        log.note("later")
        disk.full = False
        await until(lambda: log.healthy)
    log.close()

    assert log.lost == 0
    assert [line["event"] for line in logged] == ["audit write failed", "audit write recovered"]
    assert [entry["code"] for entry in entries(file)] == ["due", "later"]


async def test_it_is_healthy_only_after_a_waiting_entry_was_written(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty write that succeeds on a full disk does not end the fault."""
    monkeypatch.setattr(audit_writer, "RETRY_INTERVAL", 0.001)
    disk = Disk(monkeypatch)
    disk.full = True
    log.note("due")
    await until(lambda: not log.healthy)

    states = set()
    for _ in range(200):
        states.add(log.healthy)
        await asyncio.sleep(0)
    assert states == {False}


async def test_a_batch_is_synced_if_the_audit_is_required(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the audit is required, each batch is synced to the disk (`fsync(2)`)."""
    synced: list[int] = []
    monkeypatch.setattr("tunnelmgr.observability.audit_file.os.fsync", synced.append)
    required = False
    log = AuditLog(file, "registry-1", lambda: NOW, lambda: required)
    await log.start()
    assert synced == []

    required = True
    log.note("entry")
    log.close()

    assert len(synced) == 1


async def test_a_stalled_disk_is_a_fault(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging write is reported before it ends."""
    monkeypatch.setattr(audit_writer, "STALLED", 0.01)
    disk = Disk(monkeypatch)
    disk.free.clear()
    log.note("entry")

    await until(lambda: log.error == "the disk does not answer")
    disk.free.set()
    await until(lambda: log.healthy)


async def test_a_start_does_not_wait_for_a_stalled_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop continues while the first write hangs, and the numbers continue after those of the file."""
    file.write_text('{"sequence": 7}\n')
    monkeypatch.setattr(audit_writer, "STALLED", 0.01)
    monkeypatch.setattr(audit_log, "START_TIMEOUT", 0.01)
    disk = Disk(monkeypatch)
    disk.free.clear()

    log = AuditLog(file, "registry-1", lambda: NOW)
    await log.start()
    await until(lambda: log.error == "the disk does not answer")
    disk.free.set()
    await until(lambda: log.healthy)
    log.close()

    assert json.loads(file.read_text().splitlines()[-1])["sequence"] == 8


async def test_a_symlink_in_its_place_is_not_followed(tmp_path: Path, file: Path) -> None:
    """A user who can write to the log's folder cannot redirect the log."""
    target = tmp_path / "target"
    file.symlink_to(target)

    log = AuditLog(file, "registry-1", lambda: NOW)
    await log.start()
    log.close()

    assert not log.healthy
    assert not target.exists()


FULL_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
from tests.observability.disk import Disk
from tests.until import until
from tunnelmgr.observability import audit_log, audit_writer

async def main():
    audit_writer.RETRY_INTERVAL = 0.01
    log = audit_log.AuditLog(Path(sys.argv[1]), "c", lambda: 0.0)
    await log.start()
    for _ in range(20):
        log.note("entry", detail="x" * 100)
    await until(lambda: not log.healthy)
    log.close()
    print(log.error)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
asyncio.run(main())
"""


def test_a_full_disk_leaves_no_partial_line(file: Path) -> None:
    """On a full disk whole lines are written, and a partial line is removed."""
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, file], capture_output=True, text=True, timeout=30, check=True
    )

    assert file.read_bytes().endswith(b"\n")
    assert 0 < len(entries(file)) < 20
    assert [entry["sequence"] for entry in entries(file)] == list(range(2, 2 + len(entries(file))))
    assert ended.stdout.strip()


async def test_without_a_file_entries_go_to_the_log() -> None:
    """Without a configured file, entries go to the daemon's log."""
    log = AuditLog(None, "registry-1", lambda: NOW)
    await log.start()

    with capture_logs() as logged:
        log.note("request-refused", ONE)
    log.close()

    assert [(line["event"], line["code"], line["agent"]) for line in logged] == [
        ("audit entry written", "request-refused", ONE)
    ]
    assert log.healthy
    await log.room(ONE)


async def test_the_file_is_for_its_owner_and_group(file: Path) -> None:
    """The file's mode is 0640, regardless of the daemon's umask."""
    before = os.umask(0o077)
    try:
        log = AuditLog(file, "registry-1", lambda: NOW)
        await log.start()
        log.close()
    finally:
        os.umask(before)

    assert file.stat().st_mode & 0o777 == 0o640
    assert file.stat().st_uid == os.geteuid()
