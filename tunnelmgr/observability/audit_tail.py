"""Reads the entries of the audit log in order, over every rotation: for destinations that get a copy of each.

The rotated files are the spool: they hold what a destination does not have yet, as long as logrotate keeps them. The
field `previous` of a file's first entry says which entry comes before the file, so that nothing is left out if many
rotations pass during an outage, and an entry that nobody can read any more is counted.
"""

import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tunnelmgr.observability.audit_chain import Head, parse_line, sequence_in
from tunnelmgr.observability.audit_files import AuditStream, is_part, open_audit, rotated_files, yield_gil

GAP_TIMEOUT: Final = 5.0
"""Seconds for which entries must be missing before they count as removed: logrotate renames files one at a time."""


class Copied(NamedTuple):
    """An entry: its position in the chain, and its line with the line feed."""

    head: Head
    line: bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """A file with entries of the chain; `after` is the number of the entry before its first one."""

    file: Path
    after: int


class AuditTail:
    """A position in the chain. For use in one thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.position: Head | None = None
        """The last entry that was read; None until `rewind` sets it, and then nothing is read."""
        self.dropped = 0
        """Entries that were removed before they could be read, or that are too long."""
        self._too_long = 0  # the highest number of an entry that is counted as too long
        self._open = ExitStack()
        self._stream: AuditStream | None = None
        self._offset = 0
        self._ahead = b""  # a line that was read to find the position
        self._searched: list[Path] | None = None  # the rotated files if none of them has an entry after the open file
        self._gap_since: float | None = None

    def beginning(self) -> Head | None:
        """Return the position before the first entry of the file that is written now; None if it has none."""
        first = [part for part in self._parts() if part.file == self._file]
        return Head(first[0].after) if first else None

    def read(self, limit: int) -> list[Copied]:
        """Return the next entries, none if there is no further one now; raises OSError."""
        found = self._read_open(limit)
        if not found and not self._is_last():
            self._find_next()
            found = self._read_open(limit)
        return found

    def rewind(self, position: Head) -> None:
        """Continue after this entry."""
        self.close()
        self.position = position

    def close(self) -> None:
        """Keep no file open until the next read."""
        self._open.close()
        self._stream, self._offset, self._ahead, self._searched = None, 0, b"", None

    def _is_last(self) -> bool:
        """Return whether no other file can have the next entry: the open one is written, or none is and none was added.

        While none is written, a rotated file is not read again at each look for new entries.
        """
        if self._stream is None:
            return False
        with suppress(FileNotFoundError):
            return os.path.samestat(self._file.stat(), os.fstat(self._stream.fileno()))
        return self._searched == rotated_files(self._file)

    def _read_open(self, limit: int) -> list[Copied]:
        """Return entries of the open file after the position, up to one that does not follow them."""
        found: list[Copied] = []
        for line in self._whole_lines():
            parsed = parse_line(line)
            if parsed is None or self.position is None or parsed.sequence <= self.position.sequence:
                continue
            if (_named(line) or 0) > self.position.sequence:
                self.close()  # the entries between may be in a file that was rotated
                break
            self.position = Head(parsed.sequence, parsed.link)
            found.append(Copied(self.position, line))
            if len(found) == limit:
                break
        return found

    def _whole_lines(self) -> Iterator[bytes]:
        """Yield lines up to the end of the open file, without one that is still being written or that is too long."""
        count = 0
        while (stream := self._stream) is not None:
            line, self._ahead = self._ahead, b""
            # A compressed file that is damaged ends there; the next file tells what is missing.
            with suppress(EOFError, zlib.error):
                line = line or stream.readline()
            if is_part(line):
                self._pass_too_long(line)
                self._offset += len(line)
                with suppress(EOFError, zlib.error):
                    self._offset += stream.skip_rest(line)
                continue
            if not line.endswith(b"\n"):
                stream.seek(self._offset)
                return
            self._offset += len(line)
            yield line
            count += 1
            yield_gil(count)

    def _pass_too_long(self, beginning: bytes) -> None:
        """Continue after an entry that is too long to be read; it is counted once, also if it is passed again."""
        number = sequence_in(beginning)
        if number is None or self.position is None or number <= self.position.sequence:
            return
        self.position = Head(number)
        self.dropped += number > self._too_long
        self._too_long = max(self._too_long, number)

    def _find_next(self) -> None:
        """Open the file with the next entry; without one, the file that is written."""
        listed = rotated_files(self._file)
        parts = sorted(self._parts(), key=lambda part: part.after)
        if self.position is None:
            return
        at = self.position.sequence
        older = [part for part in parts if part.after <= at]
        for part in [*older[-1:], *(part for part in parts if part.after > at)]:
            after = self._seek_next(part.file, at)
            if after is None:
                continue
            if after <= at:
                self._gap_since = None
            elif self._accepts_gap(after, at):
                self._seek_next(part.file, after)
            else:
                self.close()
            return
        self._gap_since = None
        if not self._is_last():
            self._searched = listed
            if self._file.exists():
                self._enter(self._file)

    def _accepts_gap(self, after: int, at: int) -> bool:
        """Return whether entries are missing for so long that they were removed, and count them then."""
        now = time.monotonic()
        self._gap_since = now if self._gap_since is None else self._gap_since
        if now - self._gap_since < GAP_TIMEOUT:
            return False
        self._gap_since = None
        self.dropped += after - at
        self.position = Head(after)
        return True

    def _seek_next(self, file: Path, at: int) -> int | None:
        """Open a file at its first entry after a number; return the number that it continues, None without one."""
        if not self._enter(file):
            return None
        for line in self._whole_lines():
            parsed = parse_line(line)
            if parsed is not None and parsed.sequence > at:
                self._ahead = line
                self._offset -= len(line)
                return max(_named(line) or 0, at)
        return None

    def _enter(self, file: Path) -> bool:
        """Open a file from its beginning; return False if it is gone."""
        self.close()
        with suppress(FileNotFoundError):
            self._stream = self._open.enter_context(open_audit(file))
        return self._stream is not None

    def _parts(self) -> Iterator[_Part]:
        """Yield the files that have entries of the chain and can be read."""
        for file in [self._file, *rotated_files(self._file)]:
            # A file that is still being compressed, or that does not belong to the log, is left out.
            with suppress(OSError, EOFError, zlib.error), open_audit(file) as lines:
                for line in lines:
                    lines.skip_rest(line)
                    if (parsed := parse_line(line)) is not None:
                        named = _named(line)
                        yield _Part(file, parsed.sequence - 1 if named is None else named)
                        break


def _named(line: bytes) -> int | None:
    """Return the number of the entry that a line names as the one before it; None if it names none."""
    if b'"previous":' not in line:
        return None
    with suppress(ValueError):
        if (named := Head.from_json(json.loads(line).get("previous"))) is not None:
            return named.sequence
    return None
