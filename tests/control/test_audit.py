"""The audit log: whole lines, numbered without gaps, and loud when it cannot be written."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tunnelmgr.control.audit import AuditLog
from tunnelmgr.demo.processes import until

NOW = 1_700_000_000.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name the file."""
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(file: Path) -> Iterator[AuditLog]:
    """Start a log on it."""
    log = AuditLog(file, "registry-1", lambda: NOW)
    log.start()
    yield log
    log.close()


def entries(file: Path) -> list[dict[str, Any]]:
    """Return the lines, parsed."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_entry_is_one_line_with_time_number_code_and_facts(log: AuditLog, file: Path) -> None:
    """Each entry says when, in which order, what, and by which controller; facts that are not known are left out."""
    log.note("request-allowed", agent="ec2:i-1", repository="team/app", reference=None)
    log.close()

    assert entries(file) == [
        {
            "time": "2023-11-14T22:13:20.000Z",
            "sequence": 1,
            "code": "request-allowed",
            "controller": "registry-1",
            "agent": "ec2:i-1",
            "repository": "team/app",
        }
    ]


def test_numbers_go_on_after_a_restart(log: AuditLog, file: Path) -> None:
    """A second process continues where the first one ended, so that a missing line shows."""
    log.note("one")
    log.close()

    again = AuditLog(file, "registry-1", lambda: NOW)
    again.start()
    again.note("two")
    again.close()

    assert [(entry["sequence"], entry["code"]) for entry in entries(file)] == [(1, "one"), (2, "two")]


@pytest.mark.parametrize("spoilt", ["", "no json\n", '{"sequence": "7"}\n', "[]\n"])
def test_a_spoilt_last_line_begins_the_numbers_anew(file: Path, spoilt: str) -> None:
    """What is no entry of ours gives no number, and is left as it is."""
    file.write_text(spoilt)

    log = AuditLog(file, "registry-1", lambda: NOW)
    log.start()
    log.note("one")
    log.close()

    assert file.read_text().startswith(spoilt)
    assert json.loads(file.read_text().splitlines()[-1])["sequence"] == 1


def test_a_rotated_file_is_left_alone_and_a_new_one_begun(log: AuditLog, file: Path) -> None:
    """After logrotate has moved the file, entries go to a new one by the old name."""
    log.note("before")
    until(lambda: file.stat().st_size > 0, "the first entry is written")
    file.rename(file.with_suffix(".1"))

    log.note("after")
    log.close()

    assert [entry["code"] for entry in entries(file.with_suffix(".1"))] == ["before"]
    assert [entry["code"] for entry in entries(file)] == ["after"]


def test_a_file_that_cannot_be_written_is_loud_counted_and_heals(log: AuditLog, file: Path) -> None:
    """The fault shows, what is lost is counted, and once the file can be written again all is well."""
    file.unlink()
    file.mkdir()
    with capture_logs() as logged:
        log.note("lost")
        until(lambda: not log.healthy, "the fault shows")
    file.rmdir()

    log.note("kept")
    until(lambda: log.healthy, "it heals")

    assert log.lost == 1
    assert [line["log_level"] for line in logged] == ["error"]
    assert [entry["code"] for entry in entries(file)] == ["kept"]


def test_a_symlink_in_its_place_is_not_followed(tmp_path: Path, file: Path) -> None:
    """Whoever may write beside the log cannot make it write elsewhere."""
    target = tmp_path / "target"
    file.symlink_to(target)

    log = AuditLog(file, "registry-1", lambda: NOW)
    log.start()
    log.note("one")
    log.close()

    assert not log.healthy
    assert not target.exists()


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """What does not fit is taken back whole, so that every line stays one entry."""
    file = tmp_path / "audit.jsonl"
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tunnelmgr.control.audit import AuditLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "log = AuditLog(Path(sys.argv[1]), 'c', lambda: 0.0)\n"
        "log.start()\n"
        "[log.note('entry', detail='x' * 100) for _ in range(20)]\n"
        "log.close()\n"
        "print(log.error, log.lost)\n"
    )

    ended = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, timeout=30, check=True)

    assert file.read_bytes().endswith(b"\n")
    kept = entries(file)
    lost = int(ended.stdout.split()[-1])
    assert len(kept) + lost == 20
    assert lost > 0


def test_without_a_file_entries_go_to_the_log() -> None:
    """An audit that is not configured still leaves its trace in the journal."""
    log = AuditLog(None, "registry-1", lambda: NOW)
    log.start()

    with capture_logs() as logged:
        log.note("request-refused", agent="a")
    log.close()

    assert [(line["event"], line["code"], line["agent"]) for line in logged] == [("audit", "request-refused", "a")]
    assert log.healthy


def test_when_too_much_waits_the_rest_is_lost_and_counted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs holds up nobody and fills no memory."""
    monkeypatch.setattr("tunnelmgr.control.audit.WAITING", 3)
    log = AuditLog(file, "registry-1", lambda: NOW)  # not started: nothing is taken from the queue

    for _ in range(5):
        log.note("entry")

    assert log.lost == 2
    assert not log.healthy
    assert log._sequence == 5  # what is lost leaves a gap in the numbers


def test_a_file_that_can_be_written_again_is_found_without_an_entry(
    log: AuditLog, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that is closed for want of an audit opens by itself once the disk is mended."""
    monkeypatch.setattr("tunnelmgr.control.audit.TRY_AGAIN", 0.01)
    file.unlink()
    file.mkdir()
    log.note("lost")
    until(lambda: not log.healthy, "the fault shows")

    file.rmdir()

    until(lambda: log.healthy, "it heals")


def test_the_file_is_for_its_owner_and_group(file: Path) -> None:
    """Others cannot read who pulled what, and the group can, though the daemon's umask is strict."""
    before = os.umask(0o077)
    log = AuditLog(file, "registry-1", lambda: NOW)
    log.start()
    log.note("one")
    log.close()
    os.umask(before)

    assert file.stat().st_mode & 0o777 == 0o640
    assert file.stat().st_uid == os.geteuid()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)  # the limit of the test above was its child's own
