"""Verifies one file of the audit log, entry by entry; audit_report.py joins the files to chains.

After a fault the verification continues with the entry that was found, so that one fault is reported once:

- A link that does not match, with the next number: the entry was changed, or the one before it and its link were.
- A link that does not match, with a higher number: the entries between are missing.
- A link that does not match, with a number that was there already: the entry was moved, repeated or inserted.
- A link that matches, with a higher number: entries were lost while the disk failed, which the daemon counts itself.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tunnelmgr.observability.audit_chain import (
    SEALED,
    ChainedLine,
    Foreign,
    Head,
    link_after,
    parse_line,
    sequence_in,
    split_seal,
)
from tunnelmgr.observability.audit_files import open_audit
from tunnelmgr.observability.audit_report import Fault, FileReport, Kind, Seal, numbers
from tunnelmgr.observability.audit_seal import SealKey

_STEP: Final = 1000
"""Lines between two reports of progress."""


def verify_file(file: Path, keys: Sequence[SealKey], progress: Callable[[int], object] = lambda _: None) -> FileReport:
    """Verify a file; `progress` is called with the number of bytes of it that have been read."""
    found = _Verification(file, keys)
    try:
        with open_audit(file) as lines:
            for line in lines:
                found.take(line)
                if found.report.lines % _STEP == 0:
                    progress(lines.tell())
            progress(lines.tell())
    except EOFError:
        found.fault(Kind.CUT, "the compressed file ends too early")
    except zlib.error as damaged:
        found.fault(Kind.CHANGED, f"the compressed file is damaged: {damaged}")
    except OSError as failed:
        found.fault(Kind.UNREADABLE, failed.strerror or str(failed))
    return found.finish()


class _Verification:
    """The state of the verification of one file."""

    def __init__(self, file: Path, keys: Sequence[SealKey]) -> None:
        self.report = FileReport(file)
        self._keys = keys
        self._foreign = Foreign()
        self._foreign_from = 0  # the line on which `_foreign` begins
        self._is_open = False  # the last line was a part, so the next one continues it
        self._other: Head | None = None  # what the next entry may follow instead, if the last one was changed
        self._gap: tuple[int, Fault] | None = None  # the last missing entry, in case that it is found later

    def take(self, line: bytes) -> None:
        """Verify the next line, or the next part of one that is too long."""
        continues, self._is_open = self._is_open, not line.endswith(b"\n")
        self.report.lines += not continues
        found = None if continues else parse_line(line)
        entry = _entry_of(line) if found else None
        if found is None or entry is None:
            self._take_foreign(line, continues=continues)
            return
        self.report.controller = self.report.controller or str(entry.get("controller", ""))
        base = self._begin(found, entry) if self.report.end is None else self._follow(found, entry, self.report.end)
        self._foreign = Foreign()
        self._count(found, entry, base)

    def finish(self) -> FileReport:
        """Return the report."""
        if self.report.end is not None and self._foreign.lines:
            if self._foreign.is_open and self._foreign.lines == 1:
                self.fault(Kind.CUT, "the last line is incomplete", self._foreign_from)
            else:
                self._fault_foreign(Kind.INSERTED)
        return self.report

    def fault(self, kind: Kind, detail: str, line: int | None = None, sequence: int | None = None) -> None:
        """Add a fault."""
        self.report.faults.append(Fault(self.report.file, kind, detail, line, sequence))

    def _take_foreign(self, line: bytes, *, continues: bool) -> None:
        report = self.report
        if report.end is None:
            report.unchained += not continues
            report.highest = max(report.highest, sequence_in(line) or 0)
            report.controller = report.controller or str((_entry_of(line) or {}).get("controller", ""))
            if line.endswith(b"\n"):
                return
        if not self._foreign.lines:
            self._foreign_from = report.lines
        self._foreign.add(line)

    def _begin(self, found: ChainedLine, entry: dict[str, Any]) -> str | None:
        """Verify the first entry in this file, which names the entry before; return the link that it follows."""
        report, named, base = self.report, Head.from_json(entry.get("previous")), None
        if named is None:
            detail = "the first entry does not name the one before it: the beginning of the file is missing"
            self.fault(Kind.CUT, detail, report.lines, found.sequence)
        elif link_after(named.link, found.body) == found.link:
            base = named.link
        else:
            self.fault(Kind.CHANGED, "the entry does not match its link", report.lines, found.sequence)
        report.begin, report.end = named or Head(found.sequence - 1, ""), Head(found.sequence, found.link)
        if report.unchained and report.starts_chain:
            note = f"lines 1 to {report.unchained} have no chain: a version without this feature wrote them"
            report.notes.append(f"{report.file}: {note}")
        elif report.unchained > self._foreign.lines or entry.get("damage") != self._damage():
            self.fault(Kind.INSERTED, f"lines 1 to {report.unchained} do not belong to the chain", 1)
        elif report.unchained:
            self._check_foreign(recorded=True)
        return base

    def _follow(self, found: ChainedLine, entry: dict[str, Any], end: Head) -> str | None:
        """Verify that an entry continues the chain, and make it the end; return the link that it follows, if any."""
        named = Head.from_json(entry.get("previous"))
        candidates = [head for head in (end, self._other, named) if head is not None]
        base = next((head for head in candidates if link_after(head.link, found.body) == found.link), None)
        if base is named and found.sequence <= end.sequence:
            base = None  # a copy of the first entry of a process
        if base is None:
            if not self._check_mismatch(found, end):
                self._other = Head(end.sequence + 1, found.link)
                return None
            self._other = Head(found.sequence, link_after(end.link, found.body))
        elif base is named:
            self._check_continuation(found, end, base)
        else:
            self._check_foreign(recorded=entry.get("damage") == self._damage())
            self._check_number(found, max(base.sequence, named.sequence) if named else base.sequence)
        self._other = None if base else self._other
        self.report.end = Head(found.sequence, found.link)
        return base.link if base else None

    def _damage(self) -> dict[str, object] | None:
        return self._foreign.as_json() if self._foreign.lines else None

    def _check_foreign(self, *, recorded: bool) -> None:
        """Judge lines outside the chain, before an entry that has the right link."""
        if not self._foreign.lines:
            return
        if not recorded or self._foreign.entries:
            self._fault_foreign(Kind.INSERTED)
            return
        note = f"{self._foreign.size} bytes of an entry that was cut while it was written; the next entry records them"
        self.report.notes.append(f"{self.report.file}:{self._foreign_from}: {note}")

    def _check_number(self, found: ChainedLine, before: int) -> None:
        """Judge the number of an entry whose link is right."""
        if found.sequence > before + 1:
            note = f"{numbers(before + 1, found.sequence - 1)} lost before they could be written; none was removed here"
            self.report.notes.append(f"{self.report.file}:{self.report.lines}: {note}")
        elif found.sequence <= before and self._gap is not None and self._gap[1] in self.report.faults:
            gap = self._gap[1]  # nothing was missing: the number of that entry was changed
            self.report.faults.remove(gap)
            self.fault(Kind.CHANGED, "the entry does not match its link", gap.line, gap.sequence)
        elif found.sequence <= before:
            self.fault(Kind.CHANGED, f"the number does not follow {before}", self.report.lines, found.sequence)
        self._gap = None if found.sequence <= before else self._gap

    def _check_continuation(self, found: ChainedLine, end: Head, named: Head) -> None:
        """Judge an entry that continues another entry than the last one in this file."""
        if self._foreign.lines:
            self._fault_foreign(Kind.INSERTED)
        if named.sequence > end.sequence:
            kind, detail = Kind.CUT, f"lacks {numbers(end.sequence + 1, named.sequence)}, which were before this line"
        else:
            kind, detail = Kind.INSERTED, f"continues after sequence {named.sequence}, not after {end.sequence}"
        self.fault(kind, detail, self.report.lines, found.sequence)

    def _check_mismatch(self, found: ChainedLine, end: Head) -> bool:
        """Judge an entry whose link is wrong; return whether the chain continues with it."""
        at, sequence = self.report.lines, found.sequence
        expected = end.sequence + 1 + self._foreign.lines
        if self._foreign.lines:
            self._fault_foreign(Kind.CHANGED)
        if sequence <= end.sequence:
            if self._gap is not None and self._gap[0] == sequence and self._gap[1] in self.report.faults:
                self.report.faults.remove(self._gap[1])
                self.fault(Kind.MOVED, f"the entry belongs before line {self._gap[1].line}", at, sequence)
            else:
                detail = "the number was before this line already: the entry was inserted, repeated, moved or changed"
                self.fault(Kind.INSERTED, detail, at, sequence)
            return False
        if sequence > expected:
            self.fault(Kind.MISSING, f"lacks {numbers(expected, sequence - 1)} before this line", at, sequence)
            self._gap = (expected, self.report.faults[-1])
        elif not self._foreign.lines:
            self.fault(Kind.CHANGED, "the entry does not match its link", at, sequence)
        return True

    def _fault_foreign(self, kind: Kind) -> None:
        first, last = self._foreign_from, self._foreign_from + self._foreign.lines - 1
        what = "the line is" if first == last else f"lines {first} to {last} are"
        self.fault(
            kind, f"{what} not an entry of the chain" if kind is Kind.INSERTED else f"{what} not readable", first
        )

    def _count(self, found: ChainedLine, entry: dict[str, Any], base: str | None) -> None:
        """Count an entry, and verify its seal if it has one and follows a link."""
        report, time = self.report, str(entry.get("time", ""))
        report.entries += 1
        report.until = time
        if self._keys and base is not None and entry.get("code") == SEALED and self._is_sealed(found, entry, base):
            report.seal = Seal(found.sequence, time, float(entry.get("interval", 0)))
            report.unsealed, report.unsealed_from = 0, ""
            return
        report.unsealed_from = report.unsealed_from or time
        report.unsealed += 1

    def _is_sealed(self, found: ChainedLine, entry: dict[str, Any], base: str) -> bool:
        parts, signer = split_seal(found.body), str(entry.get("signer"))
        if parts is not None and any(key.verifies(parts[1], base, parts[0]) for key in self._keys):
            return True
        if signer not in {key.fingerprint for key in self._keys}:
            detail = f"the seal is of another key, {signer}; give that one too with --key if it is yours"
        else:
            detail = "the seal does not match: this entry, or one since the seal before it, was changed or removed"
        self.fault(Kind.SEAL, detail, self.report.lines, found.sequence)
        return False


def _entry_of(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
