"""Opens blobs, and downloads those that are missing, once for all who ask meanwhile."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.cache.content import Content
from tunnelmgr.cache.download import BlobSource, Download

MAX_DOWNLOADS: Final = 16
"""Downloads at the same time; a pull beyond that goes to the registry itself."""
MAX_DOWNLOADS_OF_ONE: Final = 4
"""Downloads at the same time that one agent has begun; docker and containerd pull three layers at once."""

log = structlog.get_logger(__name__)


class BlobCache:
    """The blobs of a folder; used on one event loop."""

    def __init__(self, files: BlobFiles) -> None:
        self.files = files
        self._growing: dict[str, Content] = {}
        self._begun: Counter[Hashable] = Counter()

    def find(self, digest: str, octets: int) -> Content | None:
        """Return a blob that is complete or on its way, None if it is neither.

        The caller takes a reader of it at once.
        """
        if (growing := self._growing.get(digest)) is not None:
            return growing if growing.octets == octets and not growing.failed else None
        fd = self.files.open(digest, octets)
        if fd is None:
            return None
        return Content(fd, octets, available=octets, on_unused=lambda: self.files.close(digest, fd))

    def download(self, source: BlobSource, reader: Hashable) -> Content | None:
        """Begin to download a blob for `reader`, None if too much is on its way already.

        The caller takes a reader of it at once.
        """
        if source.digest in self._growing or sum(self._begun.values()) >= MAX_DOWNLOADS:
            return None
        if self._begun[reader] >= MAX_DOWNLOADS_OF_ONE:
            return None
        try:
            return self._begin(source, reader)
        except OSError as failed:
            log.warning("file in the cache not created", reason=failed.strerror)
            return None

    def _begin(self, source: BlobSource, reader: Hashable) -> Content:
        loop = asyncio.get_running_loop()

        def soon(call: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(call)

        download = Download(
            source,
            self.files,
            on_progress=lambda available: soon(partial(content.grow, available)),
            on_end=lambda complete: soon(partial(content.grow, source.octets) if complete else content.fail),
            on_stored=lambda: soon(finished),
        )
        unused = False

        def on_unused() -> None:
            nonlocal unused
            unused = True
            download.abandon()
            if self._growing.get(source.digest) is content:
                content.failed = True  # it may not be joined any more
            else:
                os.close(download.fd)

        def finished() -> None:
            self._begun[reader] -= 1
            if not self._begun[reader]:
                del self._begun[reader]
            del self._growing[source.digest]
            if unused:
                os.close(download.fd)

        content = Content(download.fd, source.octets, available=0, on_unused=on_unused)
        self._growing[source.digest] = content
        self._begun[reader] += 1
        download.start()
        return content
