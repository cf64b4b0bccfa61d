"""The cache's folder: what stays, what leaves first, and what a start finds."""

import errno
import os
from pathlib import Path

import pytest

from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.errors import CacheError

ONE, TWO, THREE, FOUR = (f"sha256:{digit * 64}" for digit in "1234")


def opened(folder: Path, size: int = 1000, min_free: int = 0) -> BlobFiles:
    """Return the files of a folder, after a start."""
    files = BlobFiles(folder, size, min_free)
    files.scan()
    return files


def store(files: BlobFiles, digest: str, octets: int) -> bool:
    """Store a blob as a download does; returns whether there was room."""
    if not files.reserve(octets):
        return False
    fd, path = files.create()
    os.write(fd, b"x" * octets)
    os.close(fd)
    files.add(path, digest, octets)
    files.release(octets)
    return True


def held(files: BlobFiles, *digests: str, octets: int = 400) -> list[bool]:
    """Return which blobs are there."""
    found = []
    for digest in digests:
        fd = files.open(digest, octets)
        found.append(fd is not None)
        if fd is not None:
            files.close(digest, fd)
    return found


def test_the_least_recently_used_blob_leaves_first(tmp_path: Path) -> None:
    """Room for a new blob is made by the blob whose last use is the oldest."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    assert store(files, TWO, 400)
    assert held(files, ONE) == [True]

    assert store(files, THREE, 400)

    assert held(files, ONE, TWO, THREE) == [True, False, True]
    assert (files.used, files.count) == (800, 2)


def test_a_blob_that_is_read_stays(tmp_path: Path) -> None:
    """A blob with a reader does not leave; if all have readers, there is no room."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    assert store(files, TWO, 400)
    one, two = files.open(ONE, 400), files.open(TWO, 400)
    assert one is not None
    assert two is not None

    assert not store(files, THREE, 400)
    files.close(TWO, two)
    assert store(files, THREE, 400)

    assert held(files, ONE, TWO, THREE) == [True, False, True]
    files.close(ONE, one)


def test_a_start_finds_the_order_of_use(tmp_path: Path) -> None:
    """After a restart, the blob whose last use is the oldest still leaves first."""
    files = opened(tmp_path)
    for at, digest in enumerate((ONE, TWO)):
        assert store(files, digest, 400)
        os.utime(tmp_path / "sha256" / digest[7:9] / digest[7:], (at, at))
    assert held(files, ONE) == [True]

    restarted = opened(tmp_path)
    assert store(restarted, THREE, 400)

    assert held(restarted, ONE, TWO, THREE) == [True, False, True]


def test_a_start_with_a_smaller_size_makes_room_with_the_next_blob(tmp_path: Path) -> None:
    """A folder that is larger than its new size shrinks when the next blob arrives."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    assert store(files, TWO, 400)

    smaller = opened(tmp_path, size=500)
    assert store(smaller, THREE, 400)

    assert held(smaller, ONE, TWO, THREE) == [False, False, True]


def test_a_file_of_another_size_is_not_served(tmp_path: Path) -> None:
    """A file that was changed from outside, or is not as large as the registry says, is removed."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    (tmp_path / "sha256" / ONE[7:9] / ONE[7:]).write_bytes(b"short")

    assert files.open(ONE, 400) is None
    assert (files.used, files.count) == (0, 0)
    assert not list(tmp_path.rglob(ONE[7:]))


def test_a_file_that_was_removed_from_outside_is_forgotten(tmp_path: Path) -> None:
    """A blob whose file is gone is not there."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    (tmp_path / "sha256" / ONE[7:9] / ONE[7:]).unlink()

    assert files.open(ONE, 400) is None
    assert (files.used, files.count) == (0, 0)


def test_blobs_on_their_way_count(tmp_path: Path) -> None:
    """Room that is reserved for downloads is not given twice."""
    files = opened(tmp_path)

    assert files.reserve(600)
    assert not files.reserve(600)
    files.release(600)
    assert files.reserve(600)


def test_a_full_disk_has_no_room(tmp_path: Path) -> None:
    """Nothing is stored on a disk that would have less than `min_free` bytes left, and what is there makes room."""
    assert store(opened(tmp_path), ONE, 400)
    files = opened(tmp_path, min_free=2**60)

    assert not store(files, TWO, 400)
    assert held(files, ONE) == [False]


def test_what_can_never_fit_removes_nothing(tmp_path: Path) -> None:
    """A blob that is larger than the cache, or than what may leave, removes nothing."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    assert store(files, TWO, 400)

    assert not store(files, THREE, 1001)
    assert held(files, ONE, TWO) == [True, True]
    read = files.open(ONE, 400)
    assert read is not None
    assert not store(files, THREE, 700)
    assert held(files, TWO) == [True]
    files.close(ONE, read)


def test_a_disk_that_became_read_only_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the time of use cannot be written, the blob is served all the same."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)

    def read_only(_: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)

    assert held(files, ONE) == [True]


def test_a_start_on_a_disk_that_became_read_only_finds_the_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what a crash left cannot be removed, the complete blobs are served all the same."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    fd, left = files.create()
    os.close(fd)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", read_only)
        restarted = opened(tmp_path)

    assert held(restarted, ONE) == [True]
    assert left.exists()
    assert not opened(tmp_path)._incoming.joinpath(left.name).exists()


@pytest.mark.parametrize("fault", ["unlink", "statvfs"])
def test_a_disk_that_fails_for_a_while_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """If the disk cannot be changed or asked while room is made, nothing stays reserved, and later there is room."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    assert store(files, TWO, 400)
    statvfs, asked = os.statvfs, 0

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def failing(path: Path) -> os.statvfs_result:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise OSError(errno.EIO, "Input/output error")
        return statvfs(path)

    with monkeypatch.context() as patched:
        if fault == "unlink":
            patched.setattr(Path, "unlink", read_only)
            assert not files.reserve(700)
            assert (files.used, held(files, ONE, TWO)) == (800, [True, True])
        else:
            patched.setattr(os, "statvfs", failing)
            with pytest.raises(OSError, match="Input/output error"):
                files.reserve(700)

    assert store(files, THREE, 1000)
    assert files.used == 1000


def test_a_blob_is_found_again_after_too_many_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob that cannot be opened for now is not forgotten."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)

    def too_many(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", too_many)
        assert files.open(ONE, 400) is None

    assert held(files, ONE) == [True]


def test_a_broken_blob_leaves(tmp_path: Path) -> None:
    """A blob that a reader could not read is removed, also if another reader gives it back afterwards."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    one, other = files.open(ONE, 400), files.open(ONE, 400)
    assert one is not None
    assert other is not None

    files.close(ONE, one, broken=True)
    files.close(ONE, other, broken=True)

    assert (files.used, files.count) == (0, 0)
    assert not list(tmp_path.rglob(ONE[7:]))


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """A start neither counts nor removes what is not a blob or a download: other files, folders and links."""
    others = [tmp_path / "incoming/mail", tmp_path / "a/b/c", tmp_path / "sha256/22" / ONE[7:]]
    for other in others:
        other.parent.mkdir(parents=True)
        other.write_text("other")
    place = tmp_path / "sha256" / TWO[7:9] / TWO[7:]
    place.symlink_to(others[0])
    folder = tmp_path / "sha256" / THREE[7:9] / THREE[7:]
    folder.mkdir(parents=True)

    files = opened(tmp_path)

    assert (files.used, files.count) == (0, 0)
    assert not files.reserve(1001)
    assert all(other.read_text() == "other" for other in others)
    assert place.is_symlink()
    assert folder.is_dir()


def test_a_folder_has_one_controller(tmp_path: Path) -> None:
    """A second process that wants the same folder gets an error that names it."""
    first, second = BlobFiles(tmp_path, 1000, 0), BlobFiles(tmp_path, 1000, 0)
    first.claim()

    with pytest.raises(CacheError, match=rf"cache.path: another controller uses {tmp_path}; stop it, or"):
        second.claim()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A start with a file in the folder's place fails, and names it."""
    (tmp_path / "file").write_text("")
    files = BlobFiles(tmp_path / "file/cache", 1000, 0)

    for use in (files.claim, files.scan):
        with pytest.raises(CacheError, match=r"cache.path: .*file.*: Not a directory"):
            use()


def test_the_same_blob_twice_counts_once(tmp_path: Path) -> None:
    """A blob that two controllers' downloads store counts once."""
    files = opened(tmp_path)
    assert store(files, ONE, 400)
    assert store(files, ONE, 400)

    assert (files.used, files.count) == (400, 1)
