"""Appends entries to the audit log's file as the next lines of the hash chain, whose form audit_chain.py explains.

The file is opened for each batch, so that log rotation works. If it is not as this process has left it (a new file
after a rotation, another size, another file), the next entry says from which entry the chain continues.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunnelmgr.observability.audit_chain import START, AuditEntry, Head, Signer, next_lines
from tunnelmgr.observability.audit_files import FileEnd, file_end, rotated_files, yield_gil

MODE: Final = 0o640


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """How the chain is sealed, and how far it has got according to others.

    Without a `signer` there are no seals. `interval` is the time between two seals in seconds. The chain continues
    after `minimum_head` if the files end before it: a collector has these entries, and their numbers must not be used
    again.
    """

    signer: Signer | None = None
    interval: float = 60.0
    minimum_head: Head = START


@dataclass(frozen=True, slots=True)
class _FileIdentity:
    """A file as it was at some time."""

    device: int
    inode: int
    size: int

    @classmethod
    def of(cls, descriptor: int) -> "_FileIdentity":
        facts = os.fstat(descriptor)
        return cls(facts.st_dev, facts.st_ino, facts.st_size)


class ChainedFile:
    """The end of the chain. For use in one thread."""

    def __init__(self, file: Path, settings: ChainSettings, sync: Callable[[], bool]) -> None:
        self._file = file
        self._settings = settings
        self._sync = sync
        self._head: Head | None = None  # None until the files have been read
        self._base = 0  # the number of the last entry before this process
        self._left: _FileIdentity | None = None  # the file as the last batch left it

    @property
    def written(self) -> int:
        """The number of the last entry; 0 until the first one of this process has been written."""
        return self._end.sequence

    def append(self, entries: Sequence[AuditEntry]) -> int:
        """Append entries, whose numbers count from the start of the process; return how many were written whole.

        Raises OSError if none was written.
        """
        fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        try:
            before = _FileIdentity.of(fd)
            if before.size == 0:
                os.fchmod(fd, MODE)  # readable by its group too, regardless of the daemon's umask
            return self._write(fd, before, entries)
        finally:
            os.close(fd)

    def _write(self, fd: int, before: _FileIdentity, entries: Sequence[AuditEntry]) -> int:
        lead, marks = self._continuation(before)
        lines, heads = [lead], [self._end]
        numbered = (entry | {"sequence": self._base + entry["sequence"]} for entry in entries)
        for line, head in next_lines(self._end, numbered, marks, self._settings.signer):
            lines.append(line)
            heads.append(head)
            yield_gil(len(lines))
        data = b"".join(lines)
        written = os.write(fd, data)
        kept = data.rfind(b"\n", 0, written) + 1
        if kept < written:
            # A partial line must not become the start of the next one.
            os.ftruncate(fd, before.size + kept)
        if self._sync():
            self._synced(fd, before)
        whole = data.count(b"\n", len(lead), kept)
        if whole:
            self._head, self._left = heads[whole], _FileIdentity.of(fd)
        return whole

    @staticmethod
    def _synced(fd: int, before: _FileIdentity) -> None:
        """Sync the file; if that fails, remove what was written, because it will be written again."""
        try:
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, before.size)
            raise

    @property
    def _end(self) -> Head:
        return self._head or Head()

    def _continuation(self, before: _FileIdentity) -> tuple[bytes, dict[str, object]]:
        """Return what comes before the next line, and its further fields, if the file is not as we left it."""
        if before == self._left:
            return b"", {}
        end = file_end(self._file) if before.size else FileEnd()
        if self._head is None:
            self._head = max(self._found(end), self._settings.minimum_head, key=lambda head: head.sequence)
            self._base = self._head.sequence
        marks: dict[str, object] = {"previous": self._head.as_json()}
        if end.foreign.lines:
            marks["damage"] = end.foreign.as_json()
        return b"\n" if end.is_open else b"", marks

    def _found(self, end: FileEnd) -> Head:
        """Return the end of the chain at the start: that of the file, of the newest rotated one if it is empty."""
        if end.head.sequence:
            return end.head
        for rotated in rotated_files(self._file):
            # A file that cannot be read does not stop the log; a gap in the chain shows it.
            with suppress(OSError, EOFError, zlib.error):
                if (found := file_end(rotated).head).sequence:
                    return found
        return end.head
