"""One blob on its way from the registry to the disk.

A thread does it, with blocking calls: receiving, hashing and writing run beside the event loop, which only learns how
far it has come. Its pace is the registry's and the disk's, not that of any reader.
"""

import hashlib
import http.client
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog

from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import CacheError

PIECE_BYTES: Final = 256 * 1024
TIMEOUT: Final = 60.0  # seconds in which the registry must send something

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where a blob is: a registry, the target and the Host of the request for it, its digest and its size in bytes."""

    registry: Endpoint
    target: str
    host: str
    digest: str
    octets: int


class End(StrEnum):
    """How a download ended: with the blob, without it, or with other content than its digest's."""

    COMPLETE = "complete"
    FAILED = "failed"
    CORRUPT = "corrupt"


class CorruptBlobError(CacheError):
    """The registry sent other content than the digest's."""

    code = "cache-digest"


class Download:
    """Downloads one blob; the callbacks are called in its thread.

    `on_progress` gets the number of bytes that may be read; the last byte only counts once the digest is verified.
    `on_end` is called before a complete blob is moved to its place, otherwise with the reason why there is none;
    `on_stored` is the last call, with the reason why a complete blob was not kept, if it was not.
    """

    def __init__(
        self,
        source: BlobSource,
        files: BlobFiles,
        *,
        on_progress: Callable[[int], None],
        on_end: Callable[[End, str], None],
        on_stored: Callable[[str], None],
    ) -> None:
        self._source = source
        self._files = files
        self._on_progress = on_progress
        self._on_end = on_end
        self._on_stored = on_stored
        self._abandoned = False
        self.fd, self._path = files.create()

    def start(self) -> None:
        """Begin; raises RuntimeError, and removes the file, if no further thread can be started."""
        try:
            threading.Thread(target=self._run, name=f"download {self._source.digest}", daemon=True).start()
        except RuntimeError:
            os.close(self.fd)
            _unlink(self._path)
            raise

    def abandon(self) -> None:
        """Stop at the next piece: nobody reads it any more."""
        self._abandoned = True

    def _run(self) -> None:
        reserved, end, reason = False, End.FAILED, ""
        try:
            reserved = self._files.reserve(self._source.octets)
            self._fetch(allowed=reserved)
            end = End.COMPLETE
            self._on_end(end, reason)
            os.fsync(self.fd)
            self._files.add(self._path, self._source.digest, self._source.octets)
        except (OSError, http.client.HTTPException, CacheError) as failed:
            reason = str(failed)
            if isinstance(failed, CorruptBlobError):
                end = End.CORRUPT
        finally:
            if end is not End.COMPLETE:
                self._on_end(end, reason)
            if reserved:
                self._files.release(self._source.octets)
            _unlink(self._path)
            self._on_stored(reason if end is End.COMPLETE else "")

    def _fetch(self, *, allowed: bool) -> None:
        """Write the blob to the file, and verify it; raises OSError, HTTPException or CacheError."""
        if not allowed:
            raise CacheError("no room: cache.size or cache.min_free is reached")
        source = self._source
        connection = http.client.HTTPConnection(source.registry.host, source.registry.port, timeout=TIMEOUT)
        try:
            connection.request("GET", source.target, headers={"Host": source.host, "Accept": "*/*"})
            response = connection.getresponse()
            if response.status != HTTPStatus.OK or response.length != source.octets:
                raise CacheError(
                    f"the registry at {source.registry} answered {response.status} with {response.length} bytes, not "
                    f"200 with {source.octets}"
                )
            self._copy(response)
        finally:
            connection.close()

    def _copy(self, response: http.client.HTTPResponse) -> None:
        octets, received = self._source.octets, 0
        algorithm, _, expected = self._source.digest.partition(":")
        hashed = hashlib.new(algorithm)
        piece = memoryview(bytearray(PIECE_BYTES))
        while received < octets:
            if self._abandoned:
                raise CacheError("nobody reads it any more")
            count = response.readinto(piece)
            if not count:
                raise CacheError(f"the registry sent {received} of {octets} bytes")
            hashed.update(piece[:count])
            _write(self.fd, piece[:count])
            received += count
            self._on_progress(min(received, octets - 1))
        if hashed.hexdigest() != expected:
            raise CorruptBlobError(f"the registry sent other content: {algorithm}:{hashed.hexdigest()}")


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _unlink(path: Path) -> None:
    """Remove a file that was not moved to its place; what cannot be removed now, the next start removes."""
    try:
        path.unlink(missing_ok=True)
    except OSError as failed:
        log.warning("cache file not removed", file=str(path), reason=failed.strerror)
