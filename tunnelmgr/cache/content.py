"""A blob in a file, complete or still growing, and its readers."""

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from tunnelmgr.threads import in_thread

READ_AHEAD_BYTES: Final = 1024 * 1024
"""Bytes that a thread brings into the page cache at a time."""


class Content:
    """One blob of `octets` bytes in the open file `fd`, which it closes after its last reader.

    Changes only on the event loop: a download reports from its thread by `call_soon_threadsafe`.
    """

    def __init__(self, fd: int, octets: int, *, available: int, on_unused: Callable[[], None]) -> None:
        self.fd = fd
        self.octets = octets
        self.available = available
        """Bytes that may be read, from the start."""
        self.failed = False
        """Whether no more will become available."""
        self.corrupt = False
        """Whether that is because the registry sent other content than the digest's."""
        self.fault = ""
        """Why a reader could not read what is available, if it could not."""
        self.damaged = False
        """Whether that is because the disk cannot read it."""
        self._on_unused = on_unused
        self._readers: set[ContentReader] = set()

    def reader(self, start: int, end: int) -> "ContentReader":
        """Return a reader of the bytes from `start` to before `end`; the caller closes it."""
        reader = ContentReader(self, start, end)
        self._readers.add(reader)
        return reader

    @property
    def in_use(self) -> bool:
        """Whether somebody reads it."""
        return bool(self._readers)

    def grow(self, available: int) -> None:
        """Make more bytes available."""
        self.available = available
        self._notify()

    def fail(self, *, corrupt: bool = False) -> None:
        """Make no more bytes available."""
        self.failed, self.corrupt = True, corrupt
        self._notify()

    def closed(self, reader: "ContentReader") -> None:
        """Remove a reader; with the last one, the file closes."""
        self._readers.remove(reader)
        if not self._readers:
            self._on_unused()

    def _notify(self) -> None:
        for reader in self._readers:
            reader.changed()


class ContentReader:
    """A `ByteSource` of part of a blob; it ends early if the content fails."""

    def __init__(self, content: Content, start: int, end: int) -> None:
        self._content = content
        self._loop = asyncio.get_running_loop()
        self.position = start
        """Where the next byte is in the blob."""
        self._end = end
        self._reader: Callable[[], None] | None = None
        self._scheduled = False
        self._reading_ahead: asyncio.Task[None] | None = None
        self._read_ahead_at = -1
        self._closed = False
        self._broken = False
        self._flags = os.RWF_NOWAIT

    @property
    def corrupt(self) -> bool:
        """Whether the registry sent other content than the digest's."""
        return self._content.corrupt

    async def started(self) -> bool:
        """Wait until there is something to read; returns False if nothing will come. The caller sets the deadline."""
        if not self._is_ready():
            ready = asyncio.Event()
            self.notify_readable(ready.set)
            try:
                await ready.wait()
            finally:
                self.notify_readable(None)
        return self._content.available > self.position

    # --- ByteSource ---

    def notify_readable(self, reader: Callable[[], None] | None) -> None:
        """See `ByteSource`."""
        self._reader = reader
        self._schedule()

    def receive_into(self, buffers: Sequence[memoryview]) -> int | None:
        """See `ByteSource`."""
        room = 0 if self._broken else min(self._content.available, self._end) - self.position
        if room <= 0:
            return 0 if self._content.failed or self.position == self._end else None
        if self._reading_ahead is not None:
            return None
        # Right after reading ahead, the read may wait: otherwise a file system that always would makes no progress.
        flags = 0 if self._read_ahead_at == self.position else self._flags
        try:
            count = os.preadv(self._content.fd, _first(buffers, room), self.position, flags)
        except BlockingIOError:
            self._read_ahead(min(room, READ_AHEAD_BYTES))
            return None
        except OSError as failed:
            if failed.errno == errno.EOPNOTSUPP and self._flags:
                self._flags = 0  # this file system cannot say whether it would have to wait
                return self.receive_into(buffers)
            self._break(failed)
            return 0
        self.position += count
        return count

    # --- the content's side ---

    def changed(self) -> None:
        """Continue: there may be more to read, or nothing more will come."""
        self._schedule()

    def close(self) -> None:
        """Read no more."""
        if not self._closed:
            self._closed = True
            self._reader = None
            self._content.closed(self)

    def _read_ahead(self, octets: int) -> None:
        """Bring the next bytes into the page cache, in a thread with a file of its own."""
        position = self._read_ahead_at = self.position

        try:
            fd = os.dup(self._content.fd)
        except OSError as failed:
            self._break(failed)
            return

        def read() -> None:
            try:
                os.pread(fd, octets, position)
            finally:
                os.close(fd)

        async def reading() -> None:
            try:
                await in_thread(read)
            except OSError as failed:
                self._break(failed)
            except RuntimeError as failed:  # no further thread can be started
                os.close(fd)
                self._break(failed)
            self._reading_ahead = None
            self._schedule()

        self._reading_ahead = self._loop.create_task(reading(), name="read ahead")

    def _break(self, failed: OSError | RuntimeError) -> None:
        """End here, since the file cannot be read; other readers find that out for themselves."""
        self._broken = True
        self._content.failed, self._content.fault = True, str(failed)
        self._content.damaged = isinstance(failed, OSError) and failed.errno == errno.EIO

    def _is_ready(self) -> bool:
        content = self._content
        return self._reading_ahead is None and (min(content.available, self._end) > self.position or content.failed)

    def _schedule(self) -> None:
        if self._reader is not None and not self._scheduled and self._is_ready():
            self._scheduled = True
            self._loop.call_soon(self._call)

    def _call(self) -> None:
        self._scheduled = False
        if self._reader is not None and self._is_ready():
            self._reader()
            self._schedule()


def _first(buffers: Sequence[memoryview], octets: int) -> list[memoryview]:
    """Return the front of the buffers, `octets` bytes of them at most."""
    front = []
    for buffer in buffers:
        if octets <= 0:
            break
        front.append(buffer[:octets])
        octets -= len(buffer)
    return front
