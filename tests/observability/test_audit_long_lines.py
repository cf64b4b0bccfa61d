"""A line that is too long: the audit log writes none, and one that is in a file costs nothing but itself."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from tests.observability.sealed_log import SealedLog, entries
from tunnelmgr.core.agent import AgentId
from tunnelmgr.observability.audit_chain import NO_LINK, START, Head, next_lines
from tunnelmgr.observability.audit_files import MAX_LINE, file_end
from tunnelmgr.observability.audit_log import MAX_TEXT
from tunnelmgr.observability.audit_report import Kind
from tunnelmgr.observability.audit_tail import AuditTail

AGENT = AgentId("ec2:i-1")
TEXTS = 20
LONG = "x" * MAX_LINE


def lines(*details: str) -> list[bytes]:
    """Return a log whose entries have these details, as a version without a limit wrote it."""
    facts = [
        {"time": "", "sequence": number, "code": "entry", "controller": "registry-1", "detail": detail}
        for number, detail in enumerate(details, 1)
    ]
    return [line for line, _ in next_lines(START, facts, {"previous": START.as_json()}, None)]


def tail_of(file: Path) -> AuditTail:
    """Return a reader at the beginning of a log."""
    tail = AuditTail(file)
    tail.rewind(START)
    return tail


def numbers(tail: AuditTail) -> list[int]:
    """Return the numbers of the next entries."""
    return [entry.head.sequence for entry in tail.read(100)]


async def test_a_text_that_is_too_long_is_cut_and_its_entry_stays(sealed: SealedLog) -> None:
    """The entry of a release with a reason of 400 kB has the beginning of the reason, and its length."""
    log = await sealed.start()
    log.note("tunnel-released", AGENT, detail="x" * 400_000, uid=1000)
    log.close()

    entry = entries(sealed.file)[1]
    assert (entry["code"], entry["uid"]) == ("tunnel-released", 1000)
    assert entry["detail"] == "x" * MAX_TEXT + " [cut from 400000 characters]"
    assert sealed.verdict().faults == []


async def test_no_entry_is_longer_than_a_line_may_be(sealed: SealedLog) -> None:
    """A line is within the limit if all texts are long and each character needs the most bytes of JSON."""
    log = await sealed.start()
    log.note("entry", AGENT, **{f"text{number}": "\N{LOCK}" * MAX_LINE for number in range(TEXTS)})
    log.close()

    longest = max(sealed.file.read_bytes().splitlines(keepends=True), key=len)
    assert longest.count(b"[cut from") == TEXTS
    assert len(longest) < MAX_LINE


@pytest.mark.parametrize("suffix", ["", ".1.gz"])
def test_a_collector_gets_the_entries_after_a_line_that_is_too_long(tmp_path: Path, suffix: str) -> None:
    """The line is left out and counted once, also if the entries since an older one are read again."""
    content = b"".join(lines("one", LONG * 2, "three", "four"))
    file = tmp_path / "audit.jsonl"
    file.with_name(file.name + suffix).write_bytes(gzip.compress(content) if suffix else content)
    tail = tail_of(file)

    found = [numbers(tail)]
    tail.rewind(Head(1))
    found.append(numbers(tail))

    assert found == [[1, 3, 4], [3, 4]]
    assert tail.dropped == 1
    tail.close()


def test_the_end_of_a_line_that_is_too_long_is_not_waited_for(tmp_path: Path) -> None:
    """If the end of such a line is missing, the entries after it are read as soon as they are there."""
    file, written = tmp_path / "audit.jsonl", lines("one", LONG * 2, "three")
    file.write_bytes(written[0] + written[1][:-100])
    tail = tail_of(file)
    assert [numbers(tail), numbers(tail)] == [[1], []]

    with file.open("ab") as out:
        out.write(b"\n" + written[2])

    assert numbers(tail) == [3]
    tail.close()


async def test_a_restart_after_a_line_that_is_too_long_uses_other_numbers(sealed: SealedLog) -> None:
    """The next entry continues after the number of the line, and records the line as damage; it remains a fault."""
    damaged = lines("one", "two", LONG * 2)
    sealed.file.write_bytes(b"".join(damaged))

    await sealed.write("four")

    last = [json.loads(line) for line in sealed.file.read_bytes().splitlines()[3:]]
    assert [entry["sequence"] for entry in last] == [4, 5, 6]
    assert last[0]["previous"]["sequence"] == 3
    whole = damaged[2].removesuffix(b"\n")
    assert last[0]["damage"] == {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    (fault,) = sealed.verdict().faults
    assert (fault.kind, fault.line, fault.detail) == (Kind.INSERTED, 3, "the line is not an entry of the chain")


async def test_a_log_without_a_chain_may_end_with_a_line_that_is_too_long(sealed: SealedLog) -> None:
    """The numbers of an older version's log continue after such a line, and the verification accepts it there."""
    sealed.file.write_text('{"sequence":7,"code":"old"}\n' + json.dumps({"sequence": 8, "detail": LONG}) + "\n")

    await sealed.write("new")

    first = json.loads(sealed.file.read_bytes().splitlines()[2])
    assert (first["sequence"], first["previous"]) == (9, {"sequence": 8, "link": NO_LINK})
    assert "damage" not in first
    assert sealed.verdict().faults == []


def test_a_line_that_is_too_long_is_one_fault(sealed: SealedLog) -> None:
    """The verification names the one line that it cannot read, and continues with the next entry."""
    sealed.file.write_bytes(b"".join(lines("one", LONG * 2, "three", "four")))

    verdict = sealed.verdict(keyed=False)

    (fault,) = verdict.faults
    assert verdict.reports[0].lines == 4
    assert (fault.kind, fault.line, fault.detail) == (Kind.CHANGED, 2, "the line is not readable")


def test_the_end_of_a_long_line_is_not_taken_for_an_entry(tmp_path: Path) -> None:
    """A text that a user has chosen cannot hide the number of the last entry."""
    file = tmp_path / "audit.jsonl"
    (line,) = lines("{" * 100_000)
    # The first entry of a file names the one before it after its text.
    file.write_bytes(line)

    assert file_end(file).head.sequence == 1
