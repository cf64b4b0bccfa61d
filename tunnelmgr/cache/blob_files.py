"""The cache's folder: complete, verified blobs by digest, the least recently used of which leave first.

    FOLDER/sha256/ab/abcdef…   a blob
    FOLDER/incoming/…          a download in progress, or what a crash left of one

Any thread may call this; one lock guards the index.
"""

import os
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from tunnelmgr.errors import CacheError


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

    def scan(self) -> None:
        """Make the folder, remove what a crash left, and find the complete blobs; raises CacheError."""
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self._incoming.iterdir():
                left.unlink()
            found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self._folder.glob("*/*/*"))
        except OSError as failed:
            raise CacheError(f"cache.path: {failed.filename or self._folder}: {failed.strerror}") from failed
        with self._lock:
            for _, octets, path in found:
                self._insert(f"{path.parts[-3]}:{path.name}", octets)

    def open(self, digest: str, octets: int) -> int | None:
        """Return an open file of a blob, None if there is none of this size; `close` gives it back."""
        with self._lock:
            stored = self._blobs.get(digest)
            if stored is None:
                return None
            fd = _opened(self._path(digest), octets)
            if fd is None:
                self._drop(digest)
                return None
            stored.readers += 1
            self._blobs.move_to_end(digest)
        return fd

    def close(self, digest: str, fd: int) -> None:
        """Give back an open file."""
        os.close(fd)
        with self._lock:
            if (stored := self._blobs.get(digest)) is not None and stored.readers:
                stored.readers -= 1

    def reserve(self, octets: int) -> bool:
        """Make room for a blob, by removing others that nobody reads; returns whether there is room. Raises OSError."""
        with self._lock:
            excess = self._used + self._reserved + octets - self._size
            lacking = self._min_free + self._reserved + octets - self._free()
            removed = [self._path(digest) for digest in self._evict(max(excess, lacking))]
            self._reserved += octets
        for path in removed:  # outside of the lock, since a large file takes a while
            path.unlink(missing_ok=True)
        with self._lock:
            fits = self._used + self._reserved <= self._size and self._free() - self._reserved >= self._min_free
            if not fits:
                self._reserved -= octets
            return fits

    def release(self, octets: int) -> None:
        """Give back the room of a blob that has arrived, or will not."""
        with self._lock:
            self._reserved -= octets

    def create(self) -> tuple[int, Path]:
        """Return a new open file for a download, and its path; raises OSError."""
        fd, path = tempfile.mkstemp(dir=self._incoming)
        return fd, Path(path)

    def add(self, path: Path, digest: str, octets: int) -> None:
        """Move a complete, synchronized file to its place; raises OSError."""
        place = self._path(digest)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            path.rename(place)
            self._insert(digest, octets)

    def _evict(self, octets: int) -> list[str]:
        """Forget blobs that nobody reads, of at least so many bytes if there are enough; returns their digests."""
        evicted: list[str] = []
        for digest, stored in self._blobs.items():
            if octets <= 0:
                break
            if not stored.readers:
                evicted.append(digest)
                octets -= stored.octets
        for digest in evicted:
            self._drop(digest)
        return evicted

    def _insert(self, digest: str, octets: int) -> None:
        if digest not in self._blobs:
            self._blobs[digest] = _Stored(octets)
            self._used += octets

    def _drop(self, digest: str) -> None:
        self._used -= self._blobs.pop(digest).octets

    def _free(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize

    def _path(self, digest: str) -> Path:
        algorithm, _, name = digest.partition(":")
        return self._folder / algorithm / name[:2] / name


def _opened(path: Path, octets: int) -> int | None:
    """Open a file of this size, and note its use, by which a restart finds the order; None if that is impossible."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if os.fstat(fd).st_size != octets:
        os.close(fd)
        return None
    os.utime(fd)
    return fd
