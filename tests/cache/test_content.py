"""Readers of a blob: what is in the page cache is read at once, what is not comes by a thread, and faults end it."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.gate.memory_channel import MemoryChannel
from tests.until import until
from tunnelmgr.cache.content import Content

CONTENT = os.urandom(3_000_000)
OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """Return an open file with the content, on the disk."""
    (tmp_path / "blob").write_bytes(CONTENT)
    opened = os.open(tmp_path / "blob", os.O_RDWR)
    os.fsync(opened)
    yield opened
    os.close(opened)


async def received(content: Content, start: int, end: int) -> bytes:
    """Send part of a content to a channel, and return what arrived."""
    channel, reader = MemoryChannel(), content.reader(start, end)
    await channel.send_from(reader, end - start, lambda _: None)
    reader.close()
    return bytes(channel.outgoing)


async def test_a_reader_follows_a_growing_blob(fd: int) -> None:
    """A reader waits for what is not available yet, and gets all of it."""
    content = Content(fd, len(CONTENT), available=0, on_unused=lambda: None)

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(received(content, 0, len(CONTENT)), name="read")
        for available in (1, 1000, 1_000_000, len(CONTENT)):
            await asyncio.sleep(0)
            content.grow(available)

    assert reading.result() == CONTENT


async def test_what_is_not_in_the_page_cache_is_read_by_a_thread(fd: int) -> None:
    """A blob that the kernel has dropped from its page cache is read whole."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    content = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None)

    assert await received(content, 5, len(CONTENT) - 5) == CONTENT[5:-5]


async def test_the_loop_does_not_wait_for_the_disk(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel would have to read the disk, a thread reads ahead, and then the reader continues."""
    preadv, asked = os.preadv, 0

    def cold(file: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise BlockingIOError
        return preadv(file, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", cold)
    content = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None)

    assert await received(content, 0, len(CONTENT)) == CONTENT
    assert asked > 1


async def test_a_file_system_without_the_flag_is_read_without_it(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RWF_NOWAIT is not supported, the blob is read all the same."""
    preadv = os.preadv

    def unsupported(file: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", unsupported)
    content = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None)

    assert await received(content, 0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("fault", ["read", "read ahead"])
async def test_a_disk_that_fails_ends_the_reader(fd: int, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """If the disk cannot be read, the reader ends early."""

    def broken(*_: object) -> int:
        raise BlockingIOError if fault == "read ahead" else OSError(errno.EIO, "Input/output error")

    def lost(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(os, "pread", lost)
    content = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None)

    assert await received(content, 0, len(CONTENT)) == b""
    assert content.failed
    assert content.damaged


async def test_a_file_system_that_always_would_have_to_wait_is_read(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a read without waiting never succeeds, what was just read ahead is read with waiting."""
    preadv = os.preadv

    def waiting(file: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        if flags:
            raise BlockingIOError
        return preadv(file, [buffers[0][:1_000_000]], offset)

    monkeypatch.setattr(os, "preadv", waiting)
    content = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None)

    async with asyncio.timeout(10):
        assert await received(content, 0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("lacking", ["files", "threads"])
async def test_a_reader_ends_if_nothing_can_read_ahead(fd: int, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    """Without a further file or thread the reader ends early, leaves no file open, and the blob is not damaged."""

    def blocking(*_: object) -> int:
        raise BlockingIOError

    def too_many(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(os, "preadv", blocking)
    if lacking == "files":
        monkeypatch.setattr(os, "dup", too_many)
    else:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    content = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None)
    before = len(list(OPEN_FILES.iterdir()))

    async with asyncio.timeout(10):
        assert await received(content, 0, len(CONTENT)) == b""
    assert not content.damaged
    assert len(list(OPEN_FILES.iterdir())) == before


async def test_nothing_is_read_while_a_thread_reads_ahead(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is asked again while a thread reads ahead for it has no data yet, and starts no second thread."""

    def cold(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", cold)
    reader = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None).reader(0, 100)
    buffers = (memoryview(bytearray(50)), memoryview(bytearray(100)))

    assert reader.receive_into(buffers) is None
    monkeypatch.undo()
    assert reader.receive_into(buffers) is None
    await until(lambda: reader.receive_into(buffers) == 100)
    assert bytes(buffers[0]) + bytes(buffers[1][:50]) == CONTENT[:100]
    reader.close()


async def test_no_more_buffers_are_used_than_there_are_bytes(fd: int) -> None:
    """A read of less than the buffers hold leaves the last ones alone."""
    reader = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: None).reader(0, 10)
    buffers = [memoryview(bytearray(10)) for _ in "12"]

    assert reader.receive_into(buffers) == 10
    assert bytes(buffers[0]) == CONTENT[:10]
    assert bytes(buffers[1]) == bytes(10)
    reader.close()


async def test_the_file_is_given_back_after_the_last_reader(fd: int) -> None:
    """The content reports when nobody reads it any more, once."""
    unused: list[bool] = []
    content = Content(fd, len(CONTENT), available=len(CONTENT), on_unused=lambda: unused.append(True))
    one, two = content.reader(0, 10), content.reader(0, 10)

    one.close()
    assert unused == []
    two.close()
    two.close()
    await until(lambda: unused == [True])
