"""Downloads into the cache: how many there may be, and what their faults leave behind."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import structlog.testing

from tests.gate.docker_registry import digest_of
from tests.gate.memory_channel import MemoryChannel
from tests.until import until
from tunnelmgr.cache import blob_cache as module
from tunnelmgr.cache.blob_cache import BlobCache
from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.cache.content import Content
from tunnelmgr.cache.download import BlobSource
from tunnelmgr.core.tunnel import Endpoint

BLOB = os.urandom(1_000_000)
DIGEST = digest_of(BLOB)
OPEN_FILES = Path("/proc/self/fd")


class BlobServer(ThreadingHTTPServer):
    """An HTTP server that answers every GET with the blob and `status`, once `released` is set."""

    released = threading.Event()
    status = 200


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with the blob."""

    server: BlobServer

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()
        self.server.released.wait(10)
        with suppress(ConnectionError):  # a download that is abandoned closes its connection
            self.wfile.write(BLOB)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[BlobServer]:
    """Run the server, which sends at once."""
    with BlobServer(("127.0.0.1", 0), Handler) as running:
        running.released = threading.Event()
        running.released.set()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobCache:
    """Return an empty cache in a folder."""
    files = BlobFiles(tmp_path, 10_000_000, 0)
    files.scan()
    return BlobCache(files)


def source(server: BlobServer, digest: str = DIGEST) -> BlobSource:
    """Return where the blob is."""
    return BlobSource(Endpoint("127.0.0.1", server.server_port), f"/v2/a/blobs/{digest}", "a", digest, len(BLOB))


async def read(content: Content) -> bytes:
    """Read a content to its end."""
    channel, reader = MemoryChannel(), content.reader(0, len(BLOB))
    await channel.send_from(reader, len(BLOB), lambda _: None)
    reader.close()
    return bytes(channel.outgoing)


def files_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def test_a_blob_on_its_way_is_downloaded_once(server: BlobServer, blobs: BlobCache) -> None:
    """A second download of the blob is refused; who joins the first one gets all, also after the file is complete."""
    server.released.clear()
    content = blobs.download(source(server), "one")
    assert content is not None
    first, joined = content.reader(0, len(BLOB)), blobs.find(DIGEST, len(BLOB), 0)

    assert joined is content
    assert blobs.find(DIGEST, len(BLOB) + 1, 0) is None
    assert blobs.download(source(server), "two") is None
    server.released.set()
    await until(lambda: blobs.files.count == 1 and not blobs._arriving)
    assert await read(content) == BLOB
    first.close()


async def test_one_reader_has_two_downloads_at_once(server: BlobServer, blobs: BlobCache) -> None:
    """Each download that ends counts one less, so that nothing is left of its reader after the last."""
    server.released.clear()
    contents = [blobs.download(source(server, digest), "one") for digest in (DIGEST, digest_of(b"other"))]
    readers = [content.reader(0, 1) for content in contents if content is not None]

    assert blobs._started == {"one": 2}
    server.released.set()
    await until(lambda: not blobs._arriving)
    assert blobs._started == {}
    for reader in readers:
        reader.close()


async def test_another_answer_than_the_blob_is_not_cached(server: BlobServer, blobs: BlobCache) -> None:
    """If the registry answers the download with an error, its readers end at once, and the log says with which."""
    server.status = 503

    with structlog.testing.capture_logs() as logs:
        content = blobs.download(source(server), "one")
        assert content is not None
        assert await read(content) == b""
        await until(lambda: not blobs._arriving)

    assert ["answered 503 with 1000000 bytes, not 200 with 1000000" in line["reason"] for line in logs] == [True]
    assert files_in(blobs.files._folder) == []


async def test_a_cache_has_few_downloads(server: BlobServer, blobs: BlobCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of all agents together, nothing more is downloaded."""
    monkeypatch.setattr(module, "MAX_DOWNLOADS", 1)
    server.released.clear()
    content = blobs.download(source(server), "one")
    assert content is not None
    reader = content.reader(0, 1)

    assert blobs.download(source(server, digest_of(b"other")), "two") is None
    server.released.set()
    await until(lambda: not blobs._arriving)
    reader.close()


@pytest.mark.parametrize("lacking", ["files", "threads"])
async def test_a_download_that_cannot_start_leaves_nothing(
    server: BlobServer, blobs: BlobCache, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """Without a further file or thread there is no download, no open file, and one warning for many of them."""

    def too_many(**_: object) -> tuple[int, str]:
        raise OSError(errno.EMFILE, "Too many open files")

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    if lacking == "files":
        monkeypatch.setattr("tempfile.mkstemp", too_many)
    else:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    before = len(list(OPEN_FILES.iterdir()))

    with structlog.testing.capture_logs() as logs:
        assert [blobs.download(source(server), "one") for _ in "123"] == [None] * 3

    assert len(list(OPEN_FILES.iterdir())) == before
    assert files_in(blobs.files._folder) == []
    assert [line["event"] for line in logs] == ["blob not cached"]


async def test_a_blob_that_cannot_be_kept_is_read_and_logged(
    server: BlobServer, blobs: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a complete file cannot be synchronized, its readers have it, and the log says why it was not kept."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tunnelmgr.cache.download.os.fsync", full)

    with structlog.testing.capture_logs() as logs:
        content = blobs.download(source(server), "one")
        assert content is not None
        assert await read(content) == BLOB
        await until(lambda: not blobs._arriving)

    assert blobs.files.count == 0
    assert files_in(blobs.files._folder) == []
    assert ["No space left on device" in line["reason"] for line in logs] == [True]


async def test_a_download_ends_with_its_last_reader(server: BlobServer, blobs: BlobCache) -> None:
    """If all readers leave, the download stops, nobody joins it any more, and its file is removed and closed."""
    before = len(list(OPEN_FILES.iterdir()))
    server.released.clear()
    content = blobs.download(source(server), "one")
    assert content is not None

    content.reader(0, len(BLOB)).close()
    assert blobs.find(DIGEST, len(BLOB), 0) is None
    server.released.set()
    await until(lambda: not blobs._arriving)

    assert files_in(blobs.files._folder) == []
    await until(lambda: len(list(OPEN_FILES.iterdir())) <= before)


async def test_a_file_that_cannot_be_removed_is_named(
    server: BlobServer, blobs: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file of a failed download cannot be removed, the log says so, and the download ends all the same."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tunnelmgr.cache.download.Path.unlink", read_only)

    with structlog.testing.capture_logs() as logs:
        content = blobs.download(source(server, digest_of(b"other")), "one")
        assert content is not None
        assert len(await read(content)) == len(BLOB) - 1
        await until(lambda: not blobs._arriving)

    assert content.corrupt
    assert "cache file not removed" in [line["event"] for line in logs]


async def test_a_blob_on_a_damaged_disk_is_downloaded_again(
    server: BlobServer, blobs: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that the disk cannot read leaves the cache with its reader, and can be downloaded again."""
    content = blobs.download(source(server), "one")
    assert content is not None
    assert await read(content) == BLOB
    await until(lambda: not blobs._arriving)
    damaged = blobs.find(DIGEST, len(BLOB), 0)
    assert damaged is not None

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logs:
        patched.setattr(os, "preadv", broken)
        assert await read(damaged) == b""

    assert [line["reason"] == "not readable: [Errno 5] Input/output error" for line in logs] == [True]
    assert blobs.find(DIGEST, len(BLOB), 0) is None
    again = blobs.download(source(server), "one")
    assert again is not None
    assert await read(again) == BLOB
    await until(lambda: not blobs._arriving)
