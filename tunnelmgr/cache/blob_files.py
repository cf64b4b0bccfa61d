"""The cache's folder: complete, verified blobs by digest, the least recently used of which leave first.

    FOLDER/sha256/ab/abcdef…   a blob
    FOLDER/incoming/part-…     a download in progress, or what a crash left of one
    FOLDER/lock                locked by the process that uses the folder

Other files are left alone. Any thread may call this; one lock guards the index, and is not held while the disk is
asked, but for opening a file.
"""

import fcntl
import os
import re
import stat
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunnelmgr.errors import CacheError

_PART: Final = "part-"
_NAMES: Final = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha512": re.compile(r"[0-9a-f]{128}")}


@dataclass(slots=True)
class _Stored:
    octets: int
    readers: int = 0


class BlobFiles:
    """At most `size` bytes of blobs in a folder, on a disk on which `min_free` bytes stay free."""

    def __init__(self, folder: Path, size: int, min_free: int) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._size = size
        self._min_free = min_free
        self._lock = threading.Lock()
        self._blobs: OrderedDict[str, _Stored] = OrderedDict()  # the least recently used first
        self._used = 0
        self._reserved = 0

    @property
    def used(self) -> int:
        """Bytes of complete blobs, and of those that are on their way."""
        with self._lock:
            return self._used + self._reserved

    @property
    def count(self) -> int:
        """How many blobs are complete."""
        with self._lock:
            return len(self._blobs)

    def claim(self) -> None:
        """Make the folder, and lock it until this process ends; raises CacheError if another one uses it."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as failed:
            raise _unusable(self._folder, failed) from failed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as taken:
            os.close(lock)
            raise CacheError(
                f"cache.path: another controller uses {self._folder}; stop it, or give each a folder of its own"
            ) from taken

    def scan(self) -> None:
        """Make the folder, remove what a crash left, and find the complete blobs; raises CacheError."""
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._incoming.glob(f"{_PART}*"):
                with suppress(OSError):  # on a disk that has become read-only, complete blobs are still served
                    left.unlink()
            found = [(path, path.lstat()) for path in self._folder.glob("sha*/*/*") if _is_place(path)]
        except OSError as failed:
            raise _unusable(self._folder, failed) from failed
        with self._lock:
            for path, file in sorted(found, key=lambda one: one[1].st_mtime_ns):
                if stat.S_ISREG(file.st_mode):
                    self._insert(f"{path.parts[-3]}:{path.name}", file.st_size)

    def open(self, digest: str, octets: int) -> int | None:
        """Return an open file of a blob, None if there is none of this size; `close` gives it back."""
        with self._lock:
            stored = self._blobs.get(digest)
            if stored is None:
                return None
            try:
                fd = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                self._drop(digest)
                return None
            except OSError:
                return None  # it may be possible later, such as after too many open files
            if os.fstat(fd).st_size != octets:
                os.close(fd)
                self._discard(digest)
                return None
            stored.readers += 1
            self._blobs.move_to_end(digest)
        with suppress(OSError):  # a restart finds the order of use by it; the disk may have become read-only
            os.utime(fd)
        return fd

    def close(self, digest: str, fd: int, *, broken: bool = False) -> None:
        """Give back an open file; if it is broken, the blob leaves, so that it is downloaded again."""
        os.close(fd)
        with self._lock:
            if (stored := self._blobs.get(digest)) is None:
                return
            stored.readers = max(0, stored.readers - 1)
            if broken:
                self._discard(digest)

    def reserve(self, octets: int) -> bool:
        """Make room for a blob, by removing others that nobody reads; returns whether there is room. Raises OSError."""
        free = self._free()
        with self._lock:
            excess = self._used + self._reserved + octets - self._size
            lacking = self._min_free + self._reserved + octets - free
            evicted = self._evict(max(excess, lacking), octets)
            self._reserved += octets
        for digest, size in evicted:
            self._remove(digest, size)
        try:
            free = self._free()
        except OSError:
            self.release(octets)
            raise
        with self._lock:
            fits = self._used + self._reserved <= self._size and free - self._reserved >= self._min_free
            if not fits:
                self._reserved -= octets
            return fits

    def release(self, octets: int) -> None:
        """Give back the room of a blob that has arrived, or will not."""
        with self._lock:
            self._reserved -= octets

    def create(self) -> tuple[int, Path]:
        """Return a new open file for a download, and its path; raises OSError."""
        fd, path = tempfile.mkstemp(prefix=_PART, dir=self._incoming)
        return fd, Path(path)

    def add(self, path: Path, digest: str, octets: int) -> None:
        """Move a complete, synchronized file to its place; raises OSError."""
        place = self._path(digest)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.rename(place)
        with self._lock:
            self._insert(digest, octets)

    def _evict(self, shortage: int, octets: int) -> list[tuple[str, int]]:
        """Forget blobs that nobody reads, to make up for a shortage with a new blob; returns their digests and sizes.

        If that is not possible, nothing leaves for the new blob's sake.
        """
        evicted = self._oldest(shortage)
        if sum(size for _, size in evicted) < shortage:
            evicted = self._oldest(shortage - octets)
        for digest, _ in evicted:
            self._drop(digest)
        return evicted

    def _oldest(self, octets: int) -> list[tuple[str, int]]:
        """Return the least recently used blobs that nobody reads, of at least so many bytes if there are enough."""
        oldest: list[tuple[str, int]] = []
        for digest, stored in self._blobs.items():
            if octets <= 0:
                break
            if not stored.readers:
                oldest.append((digest, stored.octets))
                octets -= stored.octets
        return oldest

    def _remove(self, digest: str, octets: int) -> None:
        """Remove a forgotten blob's file; if that fails, the blob still counts."""
        try:
            self._path(digest).unlink(missing_ok=True)
        except OSError:
            with self._lock:
                self._insert(digest, octets)

    def _insert(self, digest: str, octets: int) -> None:
        if digest not in self._blobs:
            self._blobs[digest] = _Stored(octets)
            self._used += octets

    def _drop(self, digest: str) -> None:
        self._used -= self._blobs.pop(digest).octets

    def _discard(self, digest: str) -> None:
        self._drop(digest)
        with suppress(OSError):
            self._path(digest).unlink()

    def _free(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize

    def _path(self, digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        return self._folder / algorithm / name[:2] / name


def _is_place(path: Path) -> bool:
    """Whether a path may be a blob's."""
    algorithm, first, name = path.parts[-3:]
    return algorithm in _NAMES and first == name[:2] and _NAMES[algorithm].fullmatch(name) is not None


def _unusable(folder: Path, failed: OSError) -> CacheError:
    return CacheError(f"cache.path: {failed.filename or folder}: {failed.strerror}")
