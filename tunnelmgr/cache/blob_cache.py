"""Opens blobs, and downloads those that are missing, once for all who ask meanwhile."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Final

import structlog

from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.cache.content import Content
from tunnelmgr.cache.download import BlobSource, Download, End

MAX_DOWNLOADS: Final = 16
"""Downloads at the same time; a pull beyond that goes to the registry itself."""
WARN_EVERY: Final = 5.0
"""Seconds between two warnings about failed downloads."""
MAX_DOWNLOADS_OF_ONE: Final = 4
"""Downloads at the same time that one agent has started; docker and containerd pull three layers at once."""

log = structlog.get_logger(__name__)


class BlobCache:
    """The blobs of a folder; used on one event loop."""

    def __init__(self, files: BlobFiles) -> None:
        self.files = files
        self._arriving: dict[str, _Arriving] = {}
        self._started: Counter[Hashable] = Counter()
        self._failed = 0
        self._warned = float("-inf")

    def find(self, digest: str, octets: int, start: int) -> Content | None:
        """Return a blob for a reader from `start`: complete, or on its way and there already; None if it is neither.

        The caller takes a reader of it at once.
        """
        if (arriving := self._arriving.get(digest)) is not None:
            content = arriving.content
            joins = content.octets == octets and start <= content.available and not content.failed
            return content if joins else None
        fd = self.files.open(digest, octets)
        if fd is None:
            return None
        content = Content(fd, octets, available=octets, on_unused=lambda: self._close(digest, content))
        return content

    def download(self, source: BlobSource, reader: Hashable) -> Content | None:
        """Start to download a blob for `reader`, None if too much is on its way already, or no file can be made.

        The caller takes a reader of it at once.
        """
        if source.digest in self._arriving or len(self._arriving) >= MAX_DOWNLOADS:
            return None
        if self._started[reader] >= MAX_DOWNLOADS_OF_ONE:
            return None
        try:
            arriving = _Arriving(source, self.files, self._on_failed, partial(self._on_finished, source.digest, reader))
        except (OSError, RuntimeError) as failed:  # RuntimeError: no further thread can be started
            self._on_failed(source.digest, str(failed))
            return None
        self._arriving[source.digest] = arriving
        self._started[reader] += 1
        return arriving.content

    def _close(self, digest: str, content: Content) -> None:
        if content.fault:
            self._on_failed(digest, f"not readable: {content.fault}")
        self.files.close(digest, content.fd, broken=content.damaged)

    def _on_failed(self, digest: str, reason: str) -> None:
        """Log a fault, but seldom: agents choose how many there are."""
        self._failed += 1
        if (now := monotonic()) - self._warned >= WARN_EVERY:
            log.warning("blob not cached", digest=digest, reason=reason, failed=self._failed)
            self._warned, self._failed = now, 0

    def _on_finished(self, digest: str, reader: Hashable) -> None:
        del self._arriving[digest]
        self._started[reader] -= 1
        if not self._started[reader]:
            del self._started[reader]


class _Arriving:
    """A download, and the content that grows by it; raises OSError or RuntimeError if it cannot start."""

    def __init__(
        self,
        source: BlobSource,
        files: BlobFiles,
        on_failed: Callable[[str, str], None],
        on_finished: Callable[[], None],
    ) -> None:
        self._source = source
        self._on_failed = on_failed
        self._on_finished = on_finished
        self._loop = asyncio.get_running_loop()
        self._finished = False
        self._download = Download(
            source,
            files,
            on_progress=lambda available: self._soon(partial(self.content.grow, available)),
            on_end=lambda end, reason: self._soon(partial(self._end, end, reason)),
            on_stored=lambda reason: self._soon(partial(self._finish, reason)),
        )
        self.content = Content(self._download.fd, source.octets, available=0, on_unused=self._on_unused)
        self._download.start()

    def _soon(self, call: Callable[[], None]) -> None:
        """Call something on the event loop, from the download's thread."""
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(call)

    def _end(self, end: End, reason: str) -> None:
        if end is End.COMPLETE:
            self.content.grow(self._source.octets)
            return
        if self.content.in_use:
            self._on_failed(self._source.digest, reason)
        self.content.fail(corrupt=end is End.CORRUPT)

    def _finish(self, reason: str) -> None:
        if reason:
            self._on_failed(self._source.digest, reason)
        self._finished = True
        self._on_finished()
        self._close()

    def _on_unused(self) -> None:
        if self.content.available < self._source.octets:
            self.content.failed = True  # nobody else may join it
            self._download.abandon()
        self._close()

    def _close(self) -> None:
        """Close the file, once neither the download nor a reader needs it."""
        if self._finished and not self.content.in_use:
            os.close(self._download.fd)
