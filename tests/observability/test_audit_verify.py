"""The verification of the audit log finds every change, and says where; the changes are generated."""

import gzip
import json
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tunnelmgr.observability.audit_chain import SEALED, Head, Signer, link_after, next_lines, parse_line
from tunnelmgr.observability.audit_report import Fault, Kind, Verdict, judge
from tunnelmgr.observability.audit_seal import SealingKey, SealKey
from tunnelmgr.observability.audit_verify import verify_file

PRIVATE = Ed25519PrivateKey.generate()
PUBLIC = SealKey(PRIVATE.public_key())
SIGNER = SealingKey(PRIVATE, PUBLIC.fingerprint)
COUNT, EVERY = 36, 6
"""Entries of the log, and the distance of its seals; the last entry is one."""
BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)
START = Head()


def written(
    first: int = 1, count: int = COUNT, after: Head = START, name: str = "registry-1", signer: Signer | None = SIGNER
) -> list[bytes]:
    """Return the lines of a log with one entry each ten seconds and one seal each minute."""
    entries = [
        {
            "time": (BEGIN + timedelta(seconds=10 * number)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "sequence": number,
            "code": SEALED if number % EVERY == 0 else "request-allowed",
            "controller": name,
            **({"interval": 60.0} if number % EVERY == 0 else {"repository": "team/app", "detail": 'a "quoted" word'}),
        }
        for number in range(first, first + count)
    ]
    return [line for line, _ in next_lines(after, entries, {"previous": after.as_json()}, signer)]


LINES = written()
CONTENT = b"".join(LINES)


def head_of(line: bytes) -> Head:
    """Return the number and the link of a line."""
    found = parse_line(line)
    assert found is not None
    return Head(found.sequence, found.link)


def verify(*contents: Sequence[bytes], keyed: bool = True, through: int | None = None, suffix: str = "") -> Verdict:
    """Verify files with these lines."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}{suffix}" for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(b"".join(content))
        return judge([verify_file(file, [PUBLIC] if keyed else []) for file in files], keyed=keyed, through=through)


def kinds(verdict: Verdict) -> list[Kind]:
    """Return the kinds of all faults."""
    return [fault.kind for fault in verdict.faults]


def relinked(bodies: Sequence[bytes]) -> list[bytes]:
    """Return lines whose links someone without the key has computed again."""
    lines, link = [], Head().link
    for body in bodies:
        link = link_after(link, body)
        lines.append(body + f',"link":"{link}"}}\n'.encode())
    return lines


def bodies() -> list[bytes]:
    """Return each line of the log without its link."""
    return [line.rpartition(b',"link"')[0] for line in LINES]


places = st.integers(0, COUNT - 1)


def test_a_log_that_nobody_changed_has_no_fault() -> None:
    """The verdict on an unchanged log counts its entries, and names its last seal."""
    verdict = verify(LINES)

    (report,) = verdict.reports
    assert verdict.faults == []
    assert (report.entries, report.controller, report.end) == (COUNT, "registry-1", head_of(LINES[-1]))
    assert report.seal is not None
    assert report.seal.sequence == COUNT


@given(at=st.integers(0, len(CONTENT) - 1), byte=st.integers(0, 255))
@example(at=0, byte=ord("\n"))
@example(at=len(CONTENT) - 1, byte=0)
def test_any_changed_byte_is_found_where_it_is(at: int, byte: int) -> None:
    """Each byte of the log is covered, without the key too, and the fault is on the changed line or the next one."""
    assume(CONTENT[at] != byte)
    changed = CONTENT[:at] + bytes([byte]) + CONTENT[at + 1 :]

    faults = verify([changed], keyed=False).faults

    line = CONTENT[:at].count(b"\n") + 1
    assert faults
    assert {fault.line for fault in faults} <= {line, line + 1, line + 1 + (byte == ord("\n"))}


@given(at=st.integers(0, len(CONTENT) - 1))
def test_any_removed_byte_is_found(at: int) -> None:
    """No byte can be removed."""
    assert verify([CONTENT[:at] + CONTENT[at + 1 :]], keyed=False).faults


@given(at=places, count=st.integers(1, 4))
def test_removed_entries_are_found_where_they_were(at: int, count: int) -> None:
    """Missing entries are named by their numbers, at the line that follows them."""
    assume(at + count < COUNT)

    faults = verify(LINES[:at] + LINES[at + count :]).faults

    assert faults[0].line == at + 1
    if at:
        assert faults[0].kind is Kind.MISSING
        numbers = f"sequence {at + 1}" if count == 1 else f"sequences {at + 1} to {at + count}"
        assert faults[0].detail == f"lacks {numbers} before this line"
        assert len(faults) == 1


@given(pair=st.sets(places, min_size=2, max_size=2).map(sorted))
def test_any_two_entries_that_change_places_are_found(pair: list[int]) -> None:
    """Two lines that were swapped are a fault; if they were neighbours, exactly one."""
    one, other = pair
    swapped = LINES.copy()
    swapped[one], swapped[other] = swapped[other], swapped[one]

    faults = verify(swapped).faults

    assert faults
    if one and other == one + 1:
        assert [(fault.kind, fault.line, fault.sequence) for fault in faults] == [(Kind.MOVED, one + 2, one + 1)]


@given(what=places, at=places)
def test_any_inserted_copy_is_found(what: int, at: int) -> None:
    """A copy of an entry, at any place of the log, is a fault on its line."""
    faults = verify([*LINES[: at + 1], LINES[what], *LINES[at + 1 :]]).faults

    assert faults
    if what <= at:
        assert [(fault.kind, fault.line) for fault in faults] == [(Kind.INSERTED, at + 2)]


@given(size=st.integers(1, len(CONTENT) - 1))
def test_any_cut_before_the_last_seal_is_found(size: int) -> None:
    """A log that is cut is found by the number that it has to reach; a cut within a line is found without it."""
    cut = CONTENT[:size]

    assert verify([cut], through=COUNT).faults
    if not cut.endswith(b"\n"):
        assert verify([cut]).faults


@given(size=st.integers(1, COUNT - 1))
def test_a_cut_end_is_found_by_the_next_file(size: int) -> None:
    """The next file names the entry that the file before it must end with."""
    following = written(COUNT + 1, EVERY, head_of(LINES[-1]))
    kept = LINES[:size]
    assert verify(LINES, following).faults == []

    (fault,) = verify(kept, following).faults

    assert fault.kind is Kind.MISSING
    assert f"sequence{'s' if size < COUNT - 1 else ''} {size + 1}" in fault.detail


@given(at=places, word=st.sampled_from([b"team/app", b"request-allowed", b"registry-1"]))
def test_links_that_were_computed_again_do_not_match_the_next_seal(at: int, word: bytes) -> None:
    """Someone who changes an entry and computes all links again is found at the next seal."""
    changed = bodies()
    assume(word in changed[at])
    changed[at] = changed[at].replace(word, b"other")
    forged = relinked(changed)
    if b"other" not in changed[at] or SEALED.encode() not in changed[at]:
        assert verify(forged, keyed=False).faults == []  # without a key nobody can tell

    faults = verify(forged).faults

    seal = (at // EVERY + 1) * EVERY
    assert (faults[0].kind, faults[0].line) == (Kind.SEAL, seal)


@given(kept=st.integers(0, 2))
def test_a_log_whose_later_seals_were_removed_is_found(kept: int) -> None:
    """Someone who removes seals to change what they cover leaves a long end without a seal."""
    forged = relinked([body for number, body in enumerate(bodies(), 1) if number <= kept * EVERY or number % EVERY])

    faults = verify(forged).faults

    if kept == 2:  # the end is shorter than the time in which a seal may be late
        assert faults == []
    else:
        assert Kind.UNSEALED in [fault.kind for fault in faults]


def test_entries_after_the_last_seal_are_named() -> None:
    """A cut of whole entries after a seal leaves no trace in the file, so the verdict says what is not sealed."""
    verdict = verify(LINES[:-1])

    assert verdict.faults == []
    assert any(f"sealed to sequence {COUNT - EVERY}" in note and "5 entries" in note for note in verdict.notes)


def test_a_seal_of_another_key_is_named() -> None:
    """A log that another key has sealed is a fault, which names that key; with both keys there is none."""
    private = Ed25519PrivateKey.generate()
    other = SealKey(private.public_key())
    after = written(COUNT + 1, EVERY, head_of(LINES[-1]), signer=SealingKey(private, other.fingerprint))

    (fault,) = verify(LINES, after).faults
    assert fault.kind is Kind.SEAL
    assert other.fingerprint in fault.detail
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "both"
        file.write_bytes(b"".join([*LINES, *after]))
        assert judge([verify_file(file, [PUBLIC, other])], keyed=True).faults == []


def test_a_log_without_any_seal_is_not_proved() -> None:
    """With a key, a log without a seal is a fault: its seals may have been removed."""
    assert kinds(verify(written(signer=None))) == [Kind.SEAL] * (COUNT // EVERY) + [Kind.UNSEALED]
    assert kinds(verify(LINES[: EVERY - 1])) == [Kind.UNSEALED]
    assert kinds(verify(LINES[: EVERY - 1], keyed=False)) == []


def parts() -> list[list[bytes]]:
    """Return a log in four files, of which each continues the one before."""
    files = [LINES]
    for _ in range(3):
        last = head_of(files[-1][-1])
        files.append(written(last.sequence + 1, EVERY, last))
    return files


@given(order=st.permutations(range(4)))
def test_files_are_joined_in_any_order(order: list[int]) -> None:
    """The order in which files are named does not matter."""
    files = parts()

    assert verify(*(files[at] for at in order)).faults == []


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_file_is_found(missing: int) -> None:
    """A file that is missing between two others is found, with the numbers that it had."""
    files = parts()
    first, last = head_of(files[missing][0]).sequence, head_of(files[missing][-1]).sequence
    del files[missing]

    (fault,) = verify(*files).faults

    assert fault.kind is Kind.MISSING
    assert f"sequences {first} to {last}" in fault.detail


def test_the_first_files_may_have_been_removed_by_rotation() -> None:
    """A chain whose first files are not given is accepted, with a note."""
    verdict = verify(*parts()[1:])

    assert verdict.faults == []
    assert any(f"begins after sequence {COUNT}" in note for note in verdict.notes)


def test_a_second_chain_is_a_fault() -> None:
    """A file that begins a chain, although others of the same controller are there, tells that files were removed."""
    assert kinds(verify(LINES, written(100, EVERY))) == [Kind.MISSING]


def test_logs_of_several_members_are_verified_together() -> None:
    """Each controller has a chain of its own, and a fault names the file of the one that was changed."""
    others = written(name="registry-2")

    assert verify(LINES, others).faults == []
    assert [fault.line for fault in verify(LINES, [*others[:8], *others[9:]]).faults] == [9]


def test_a_log_of_an_older_version_is_named_as_such() -> None:
    """A log without a chain verifies nothing; before a chain it is accepted, and amid one it is not."""
    old = [b'{"time":"","sequence":%d,"code":"old","controller":"registry-1"}\n' % number for number in range(1, 4)]
    chained = written(4, EVERY, Head(3))
    stripped = [body + b"}\n" for body in bodies()]

    assert kinds(verify(old)) == [Kind.NO_CHAIN]
    assert verify(old, chained).faults == []
    assert verify([*old, *chained]).faults == []
    assert Kind.NO_CHAIN in kinds(verify(stripped, *parts()[1:]))
    assert Kind.INSERTED in kinds(verify([*old, *parts()[1]]))


def test_a_compressed_file_is_verified() -> None:
    """Files of logrotate's `compress` are read, and a damaged or cut archive is a fault."""
    archive = gzip.compress(CONTENT)

    assert verify([archive], suffix=".gz").faults == []
    assert Kind.CUT in kinds(verify([archive[:-20]], suffix=".gz"))
    assert verify([archive[:200] + bytes([archive[200] ^ 1]) + archive[201:]], suffix=".gz").faults


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """A missing file, a folder and a symlink are faults with a reason."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "none")

    faults: list[Fault] = []
    for place in (tmp_path / "none", tmp_path, link):
        faults += judge([verify_file(place, [])], keyed=False).faults

    assert [fault.kind for fault in faults] == [Kind.UNREADABLE] * 3


def test_an_empty_file_is_accepted_beside_others() -> None:
    """The file after a rotation may be empty; a log without any entry verifies nothing."""
    assert verify(LINES, []).faults == []
    assert kinds(verify([])) == [Kind.NO_CHAIN]


def test_lost_entries_are_noted() -> None:
    """Entries that were lost before they were written leave a gap in the numbers of a whole chain: no fault."""
    entries = [{"time": "", "sequence": number, "code": "entry", "controller": "c"} for number in (1, 2, 5)]
    lines = [line for line, _ in next_lines(Head(), entries, {"previous": Head().as_json()}, None)]

    verdict = verify(lines, keyed=False)

    assert verdict.faults == []
    assert any("sequences 3 to 4 lost" in note for note in verdict.notes)


@given(st.binary(max_size=300) | st.text().map(str.encode) | st.just(json.dumps({"link": 1}).encode()))
def test_any_content_gets_a_verdict(content: bytes) -> None:
    """Any bytes, alone and within a log, are judged without an exception."""
    verify([content])
    assert verify([*LINES[:3], content, b"\n", *LINES[3:]]).faults
