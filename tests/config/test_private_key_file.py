"""Private key files: which ones are safe to use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunnelmgr.config import private_key_file_error


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Make a private key file with safe permissions."""
    file = tmp_path / "key"
    file.touch(mode=0o600)
    return file


def test_a_key_that_only_its_owner_can_read_is_safe(key: Path) -> None:
    """A private key that only its owner can read has no error."""
    assert private_key_file_error(key) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_key_that_others_can_access_is_refused(key: Path, mode: int) -> None:
    """A private key that others can access is refused with the command that corrects it, as ssh(1) does."""
    key.chmod(mode)

    assert private_key_file_error(key) == f"{key} can be read by others (mode {mode:04o}); run `chmod 600 {key}`"


def test_a_symlink_is_refused(key: Path) -> None:
    """The owner of a symlink could replace the key, so a symlink is refused."""
    link = key.with_name("link")
    link.symlink_to(key)

    assert private_key_file_error(link) == f"{link} is a symlink; name the file itself"


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    """The error for a missing key has the reason of the system."""
    assert private_key_file_error(tmp_path / "none") == f"cannot read {tmp_path / 'none'}: No such file or directory"


def test_a_folder_is_not_a_key(tmp_path: Path) -> None:
    """A folder, a pipe or a device is refused."""
    assert private_key_file_error(tmp_path) == f"{tmp_path} is not a regular file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(key: Path) -> None:
    """A key of another user is refused, because that user can change it; both users are named."""
    os.chown(key, 12345, 12345)

    assert private_key_file_error(key) == (
        f"{key} belongs to uid 12345, not to root: run this as uid 12345, or `chown` the file to the daemon's user"
    )


def test_a_key_of_root_is_accepted_by_others(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can change every file anyway; a key of any other user is refused."""
    owner = os.stat(key).st_uid  # noqa: PTH116 - the owner as a number
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    found = private_key_file_error(key)

    assert found is None if owner == 0 else "not to uid 12345" in str(found)


def test_a_key_that_cannot_be_read_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the daemon's user cannot read is refused with the user's id."""
    monkeypatch.setattr(os, "access", lambda *_: False)

    assert private_key_file_error(key) == f"cannot read {key}: permission denied for uid {os.geteuid()}"
