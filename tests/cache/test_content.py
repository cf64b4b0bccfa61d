"""Readers of a blob: what is in the page cache is read at once, what is not comes by a thread, and faults end it."""

import asyncio
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.gate.memory_channel import MemoryChannel
from tests.until import until
from tunnelmgr.cache.content import Content

CONTENT = os.urandom(3_000_000)


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
