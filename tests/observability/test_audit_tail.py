"""Reading the audit log behind its writer: rotations at any moment, half-written lines, and files that are gone."""

import gzip
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.until import until
from tunnelmgr.observability import audit_tail
from tunnelmgr.observability.audit_chain import START, Head, next_lines
from tunnelmgr.observability.audit_files import AuditStream, open_audit
from tunnelmgr.observability.audit_tail import AuditTail


class Log:
    """A log that is written by hand."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "audit.jsonl"
        self._head = START
        self._begins = True

    def line(self) -> bytes:
        """Return the next line of the log."""
        entry = {"time": "", "sequence": self._head.sequence + 1, "code": "entry", "controller": "c"}
        marks = {"previous": self._head.as_json()} if self._begins else {}
        ((line, self._head),) = next_lines(self._head, [entry], marks, None)
        self._begins = False
        return line

    def append(self, count: int = 1, file: Path | None = None) -> None:
        """Append entries to the file, or to another one."""
        with (file or self.file).open("ab") as out:
            out.write(b"".join(self.line() for _ in range(count)))

    def rotate(self, number: int) -> Path:
        """Move the file away; the next entry begins a new one."""
        self._begins = True
        return self.file.rename(self.file.with_name(f"audit.jsonl.{number}"))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """Make a log without entries."""
    return Log(tmp_path)


@pytest.fixture
def tail(log: Log) -> AuditTail:
    """Make a reader at the beginning of the log."""
    tail = AuditTail(log.file)
    tail.rewind(START)
    return tail


def numbers(tail: AuditTail, limit: int = 100) -> list[int]:
    """Return the numbers of the next entries."""
    return [entry.head.sequence for entry in tail.read(limit)]


def test_entries_are_read_once_and_in_order(log: Log, tail: AuditTail) -> None:
    """Each read continues after the last one, over rotations and compressed files."""
    assert numbers(tail) == []
    log.append(5)
    assert numbers(tail, 2) == [1, 2]
    assert numbers(tail) == [3, 4, 5]
    for number in range(1, 4):
        old = log.rotate(number)
        old.with_name(f"{old.name}.gz").write_bytes(gzip.compress(old.read_bytes()))
        old.unlink()
        log.append(2)

    assert [numbers(tail) for _ in range(4)] == [[6, 7], [8, 9], [10, 11], []]
    assert tail.dropped == 0
    tail.close()


def test_a_line_that_is_half_written_is_left_for_later(log: Log, tail: AuditTail) -> None:
    """A line without its end is not read, and is read whole once it has one."""
    log.append()
    line = log.line()
    with log.file.open("ab") as out:
        out.write(line[:20])
    assert numbers(tail) == [1]
    assert numbers(tail) == []
    with log.file.open("ab") as out:
        out.write(line[20:])

    assert [entry.line for entry in tail.read(10)] == [line]
    tail.close()


def test_a_rotated_file_is_not_read_again_while_no_file_is_written(
    log: Log, tail: AuditTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as there is no file of the log's name, the newest rotated file stays open, and only its end is read."""
    opened: list[Path] = []

    def open_counted(file: Path) -> AbstractContextManager[AuditStream]:
        opened.append(file)
        return open_audit(file)

    log.append(2)
    old = log.rotate(1)
    log.append(2)
    newest = log.rotate(2)
    assert [*numbers(tail), *numbers(tail), *numbers(tail)] == [1, 2, 3, 4]

    monkeypatch.setattr(audit_tail, "open_audit", open_counted)
    assert [numbers(tail) for _ in range(10)] == [[]] * 10
    assert opened == []

    log._begins = False
    log.append(1, newest)
    log._begins = True
    log.append(1)
    assert [*numbers(tail), *numbers(tail)] == [5, 6]
    assert opened.count(old) < 3
    tail.close()


def test_a_file_that_was_rotated_since_is_read_while_no_file_is_written(log: Log, tail: AuditTail) -> None:
    """A file that was written and rotated between two reads is read, although there is again no file to write."""
    log.append(2)
    log.rotate(1)
    assert [*numbers(tail), *numbers(tail)] == [1, 2]
    log.append(2)
    log.rotate(2)

    assert [*numbers(tail), *numbers(tail)] == [3, 4]
    tail.close()


def test_an_entry_that_is_written_after_the_rotation_is_not_left_out(log: Log, tail: AuditTail) -> None:
    """The writer may still write to the old file when the new one is there already; nothing is left out."""
    log.append(2)
    assert numbers(tail) == [1, 2]
    old = log.file.rename(log.file.with_name("audit.jsonl.1"))
    log.file.touch()
    assert numbers(tail) == []
    log.append(1, old)
    log._begins = True
    log.append()

    found = [*numbers(tail), *numbers(tail), *numbers(tail)]

    assert found == [3, 4]
    tail.close()


def test_a_file_that_is_missing_for_a_moment_is_waited_for(
    log: Log, tail: AuditTail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While logrotate renames files, one may be nowhere; its entries do not count as removed."""
    monkeypatch.setattr(audit_tail, "GAP_TIMEOUT", 3600.0)
    log.append(2)
    old = log.rotate(1)
    log.append()
    away = old.rename(tmp_path / "away")
    assert numbers(tail) == []
    away.rename(old.with_name("audit.jsonl.2"))

    assert [*numbers(tail), *numbers(tail)] == [1, 2, 3]
    assert tail.dropped == 0
    tail.close()


async def test_a_file_that_stays_missing_is_counted(log: Log, tail: AuditTail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of a file that was removed are counted after some time, and those after it are read."""
    monkeypatch.setattr(audit_tail, "GAP_TIMEOUT", 0.01)
    log.append(2)
    log.rotate(1).unlink()
    log.append(2)
    found: list[int] = []
    await until(lambda: found.extend(numbers(tail)) or found)

    assert (found, tail.dropped) == ([3, 4], 2)
    tail.close()


def test_a_position_within_a_file_is_found_again(log: Log, tail: AuditTail) -> None:
    """After a restart, reading continues in the middle of a rotated file."""
    log.append(4)
    log.rotate(1)
    log.append(2)
    tail.rewind(Head(3))

    assert [*numbers(tail), *numbers(tail)] == [4, 5, 6]
    tail.close()


def test_a_damaged_archive_ends_where_it_is_damaged(log: Log, tail: AuditTail, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be decompressed counts as removed, and does not stop the reading."""
    monkeypatch.setattr(audit_tail, "GAP_TIMEOUT", 0.0)
    log.append(2000)
    old = log.rotate(1)
    packed = gzip.compress(old.read_bytes())
    old.with_name("audit.jsonl.1.gz").write_bytes(packed[: len(packed) // 2])
    old.unlink()
    log.append()

    found: list[int] = []
    for _ in range(50):
        found += numbers(tail)

    assert found[-1] == 2001
    assert tail.dropped == 2001 - len(found)
    assert 0 < len(found) < 2000
    tail.close()


def test_a_cut_file_does_not_stop_the_reading(log: Log, tail: AuditTail, monkeypatch: pytest.MonkeyPatch) -> None:
    """If entries were cut off the file that is written, they count as removed, and the later ones are read."""
    monkeypatch.setattr(audit_tail, "GAP_TIMEOUT", 0.0)
    log.append(4)
    content = log.file.read_bytes().splitlines(keepends=True)
    log.file.write_bytes(b"".join(content[:2]))
    log._begins = True
    log.append()

    assert [*numbers(tail), *numbers(tail), *numbers(tail)] == [1, 2, 5]
    assert tail.dropped == 2
    tail.close()


def test_a_new_destination_begins_with_the_current_file(log: Log, tail: AuditTail) -> None:
    """The beginning of a new destination is that of the file that is written, not of older ones."""
    assert tail.beginning() is None
    log.append(3)
    assert tail.beginning() == Head(0)
    log.rotate(1)
    assert tail.beginning() is None
    log.append()

    assert tail.beginning() == Head(3)
