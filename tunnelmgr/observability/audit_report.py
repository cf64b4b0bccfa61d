"""What a verification of the audit log finds: faults in one file, and between the files of one chain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from tunnelmgr.observability.audit_chain import NO_LINK, Head

_OVERDUE: Final = 3
"""Intervals that the end of a log may be without a seal."""
_SLACK: Final = timedelta(seconds=60)


class Kind(StrEnum):
    """What is wrong at a place."""

    CHANGED = "changed"
    MISSING = "missing"
    MOVED = "out-of-order"
    INSERTED = "inserted"
    CUT = "cut"
    SEAL = "bad-seal"
    UNSEALED = "not-sealed"
    NO_CHAIN = "no-chain"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `line` and `sequence` are None if it concerns the whole file."""

    file: Path
    kind: Kind
    detail: str
    line: int | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Seal:
    """A valid seal: its entry's number and time, and the seconds until the next one was due."""

    sequence: int
    time: str
    interval: float


@dataclass(slots=True)
class FileReport:
    """What one file holds.

    `begin` is the entry before its first one, as that names it, and `end` its last one: both None without a chain.
    `unchained` counts the lines before the chain, `highest` is their highest number. `unsealed` counts the entries
    after the last valid seal, which have the times `unsealed_from` to `until`.
    """

    file: Path
    lines: int = 0
    entries: int = 0
    unchained: int = 0
    highest: int = 0
    controller: str = ""
    begin: Head | None = None
    end: Head | None = None
    seal: Seal | None = None
    unsealed: int = 0
    unsealed_from: str = ""
    until: str = ""
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def starts_chain(self) -> bool:
        """Whether the file's first entry is the first of a chain."""
        return self.begin is not None and self.begin.link == NO_LINK


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result for all files: the reports in the order of the chains, every fault, and what else is to be said."""

    reports: Sequence[FileReport]
    faults: Sequence[Fault]
    notes: Sequence[str]


def judge(reports: Iterable[FileReport], *, keyed: bool, through: int | None = None) -> Verdict:
    """Return the verdict on files: also whether each continues another one, and whether the ends are sealed.

    `keyed` says whether seals were verified. `through` is a number that the chain must reach.
    """
    ordered = sorted(reports, key=lambda report: (report.controller, report.begin.sequence if report.begin else -1))
    chained = [report for report in ordered if report.begin is not None]
    faults = [fault for report in ordered for fault in report.faults]
    notes = [note for report in ordered for note in report.notes]
    last: dict[str, FileReport] = {}
    for report in chained:
        _check_continuation(last.get(report.controller), report, faults, notes)
        last[report.controller] = report
    faults += _without_chain([report for report in ordered if report.begin is None], chained)
    for controller, report in last.items():
        parts = [other for other in chained if other.controller == controller]
        if keyed:
            _sealed(parts, faults, notes)
        if through is not None and (report.end is None or report.end.sequence < through):
            end = report.end.sequence if report.end else 0
            missing = f"the log ends with sequence {end}, and lacks {numbers(end + 1, through)}"
            faults.append(Fault(report.file, Kind.CUT, missing, sequence=end))
    return Verdict(ordered, faults, notes)


def _check_continuation(before: FileReport | None, report: FileReport, faults: list[Fault], notes: list[str]) -> None:
    """Judge whether a file continues the one before it, which is None for the first one of its controller."""
    begin = report.begin or Head()
    if before is None or before.end is None:
        if not report.starts_chain and begin.sequence:
            notes.append(f"{report.file}: begins after sequence {begin.sequence}; the files before it were not given")
        return
    if begin.link == before.end.link:
        return
    end = before.end.sequence
    if begin.link == NO_LINK:
        kind, detail = Kind.MISSING, f"begins a new chain, and does not continue {before.file}: files were removed"
    elif begin.sequence > end:
        lacking = numbers(end + 1, begin.sequence)
        kind, detail = Kind.MISSING, f"lacks {lacking}: a file is missing, or the end of {before.file}"
    else:
        kind = Kind.CHANGED
        detail = f"continues after sequence {begin.sequence}, but the end of {before.file} is another entry"
    faults.append(Fault(report.file, kind, detail, line=report.unchained + 1))


def _without_chain(bare: Sequence[FileReport], chained: Sequence[FileReport]) -> list[Fault]:
    """Return the faults of files without a chain: such a file can only be older than the beginning of the chain."""
    found = []
    if not chained and not any(report.lines or report.faults for report in bare):
        return [Fault(report.file, Kind.NO_CHAIN, "has no entry") for report in bare]
    for report in bare:
        if not report.lines:
            continue  # as after a rotation
        chain = [other for other in chained if other.controller == report.controller]
        if not chain:
            detail = "has no chain, so nothing in it can be verified; a version without this feature wrote it"
        elif chain[0].starts_chain and chain[0].begin is not None and report.highest <= chain[0].begin.sequence:
            continue
        else:
            detail = "has no chain, but is not older than the chain: its links were removed, or it is of another log"
        found.append(Fault(report.file, Kind.NO_CHAIN, detail))
    return found


def _sealed(parts: Sequence[FileReport], faults: list[Fault], notes: list[str]) -> None:
    """Judge the end of a chain: what no seal covers is not protected, and seals must not have stopped."""
    seal, count, since, last = None, 0, "", parts[-1]
    for report in parts:
        if report.seal is not None:
            seal, count, since = report.seal, report.unsealed, report.unsealed_from
        else:
            since = since if count else report.unsealed_from
            count += report.unsealed
    if seal is None:
        faults.append(Fault(last.file, Kind.UNSEALED, "no valid seal of this key, so nothing is proved by it"))
        return
    if not count:
        notes.append(f"sealed to the end, sequence {seal.sequence}, {seal.time}")
        return
    notes.append(f"sealed to sequence {seal.sequence}, {seal.time}; {count} entries after it are not sealed")
    span = _span(since, last.until)
    if span is None or span > _OVERDUE * timedelta(seconds=seal.interval) + _SLACK:
        detail = f"{count} entries, from {since} to {last.until}, have no seal, although one was due every"
        faults.append(Fault(last.file, Kind.UNSEALED, f"{detail} {seal.interval:g} s", sequence=seal.sequence + 1))


def _span(first: str, last: str) -> timedelta | None:
    try:
        return datetime.fromisoformat(last) - datetime.fromisoformat(first)
    except (ValueError, TypeError):
        return None


def numbers(first: int, last: int) -> str:
    """Return the name of one entry or of a range, such as `sequence 7` or `sequences 7 to 9`."""
    return f"sequence {first}" if first == last else f"sequences {first} to {last}"
