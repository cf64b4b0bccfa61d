"""The files of an audit log: the one that is written, those to which it was rotated, and where each one ends."""

import gzip
import io
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from tunnelmgr.observability.audit_chain import START, Foreign, Head, parse_line, sequence_in

CURSOR: Final = ".cursor"
"""The end of the name of a file that holds how far a destination has got; see audit_cursor.py."""
MAX_LINE: Final = 1024 * 1024
"""Bytes, with the line feed. `AuditLog` writes no longer line; one that is longer is damaged, and is read in parts."""
_TAIL = 64 * 1024
_TURN: Final = 32
"""Lines, about half a millisecond's work, after which a thread lets the event loop run."""
_PAUSE: Final = 0.0001
"""Seconds; a shorter pause does not hand over Python's lock, and the loop would wait for its switch interval, 5 ms."""


def yield_gil(lines: int) -> None:
    """Pause a thread that works through many lines; `lines` is how many it has done."""
    if lines % _TURN == 0:
        time.sleep(_PAUSE)


@dataclass(frozen=True, slots=True)
class FileEnd:
    """The end of a file: its last entry, and what is after it. A file without a chain has the number of its last line.

    `foreign` is what is after the last entry of the chain; without a chain, only a line without an end. `is_open` says
    that the last line has no line feed.
    """

    head: Head = START
    foreign: Foreign = field(default_factory=Foreign)
    is_open: bool = False


class AuditStream:
    """A file of an audit log, read line by line; decompressed if its name ends with `.gz`."""

    def __init__(self, raw: IO[bytes], *, compressed: bool) -> None:
        self._raw = raw
        self._lines: IO[bytes] = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]

    def __iter__(self) -> Iterator[bytes]:
        """Yield lines; the last one may have no end. Raises OSError, EOFError or zlib.error for a damaged archive."""
        while line := self.readline():
            yield line

    def readline(self) -> bytes:
        """Return the next line, or the next MAX_LINE bytes of one that is longer; at the end of the file b""."""
        return self._lines.readline(MAX_LINE)

    def skip_rest(self, line: bytes) -> int:
        """Skip the other parts of a line of which this is the first one; return how many bytes that were."""
        skipped = 0
        while is_part(line):
            line = self.readline()
            skipped += len(line)
        return skipped

    def tell(self) -> int:
        """Return how many bytes of the file have been read, before decompression."""
        return self._raw.tell()

    def seek(self, offset: int) -> None:
        """Continue at an offset of the decompressed file."""
        self._lines.seek(offset)

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._raw.fileno()


def is_part(line: bytes) -> bool:
    """Return whether a line is only a part of one that is too long, so that more of it follows."""
    return len(line) == MAX_LINE and not line.endswith(b"\n")


@contextmanager
def open_audit(file: Path) -> Iterator[AuditStream]:
    """Open a file for reading; raises OSError, also for a symlink and for anything but a regular file."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with io.BufferedReader(io.FileIO(fd, closefd=True), _TAIL) as raw:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{file} is not a regular file")
        yield AuditStream(raw, compressed=file.suffix == ".gz")


def rotated_files(file: Path) -> list[Path]:
    """Return the files to which logrotate(8) has moved a file, newest first; raises OSError.

    They are in the same folder: NAME.1, NAME.2.gz, NAME-20260131; with its option `extension` also STEM.1.SUFFIX and
    STEM-20260131.SUFFIX.
    """
    # A date has eight digits; `audit-2.jsonl` may be the log of another member on this machine.
    turn = r"(?:-[0-9]{8}[0-9.-]*|\.[0-9]+)"
    with_extension = re.compile(rf"{re.escape(file.stem)}{turn}{re.escape(file.suffix)}(?:\.gz)?")
    found = [
        entry
        for entry in os.scandir(file.parent)
        if entry.is_file(follow_symlinks=False)
        and not entry.name.endswith((CURSOR, ".tmp"))
        and (entry.name.startswith((f"{file.name}.", f"{file.name}-")) or with_extension.fullmatch(entry.name))
    ]
    return [Path(entry.path) for entry in sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)]


def file_end(file: Path) -> FileEnd:
    """Return where a file ends; raises OSError, EOFError or zlib.error if it cannot be read."""
    with open_audit(file) as lines:
        if file.suffix != ".gz":
            size = os.fstat(lines.fileno()).st_size
            lines.seek(max(0, size - _TAIL))
            before, _, last = b"".join(lines).removesuffix(b"\n").rpartition(b"\n")
            lines.seek(size - 1 if size else 0)
            # Without a line before it, the last one may start before what was read.
            if lines.readline() == b"\n" and before and (found := parse_line(last + b"\n")) is not None:
                return FileEnd(Head(found.sequence, found.link))
            lines.seek(0)
        return _end_of(lines)


def _end_of(lines: AuditStream) -> FileEnd:
    """Read a whole file whose last line is not an entry of a chain, or which cannot be read from its end."""
    head, highest, foreign = START, 0, Foreign()
    chained = is_open = False
    for line in lines:
        continues, is_open = is_open, not line.endswith(b"\n")
        # An entry that lacks nothing but its line feed gets one.
        found = None if continues or is_part(line) else parse_line(line + b"\n" if is_open else line)
        if found is not None:
            head, chained, foreign = Head(found.sequence, found.link), True, Foreign()
            highest = max(highest, found.sequence)
            continue
        foreign.add(line)
        if not (chained or is_open):
            foreign = Foreign()  # lines of an older version, before any chain
        if not continues and (not is_open or is_part(line)):
            highest = max(highest, sequence_in(line) or 0)
    return FileEnd(Head(highest, head.link), foreign, is_open)
