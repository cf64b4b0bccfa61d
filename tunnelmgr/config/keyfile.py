"""Files with keys in them: whether a private one is safe to use, and what a public one holds."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tunnelmgr.core.host_key import AUTHORITY_KEY_TYPES, parse_key


def examine_key_file(path: Path) -> str | None:  # noqa: PLR0911 - one return a finding
    """Return what is wrong with a private key file, None if it is safe to use.

    As ssh(1) does, a key that others can read is refused; so are symlinks and foreign owners. A systemd credential
    belongs to root, and lets the service's user in by an access list, which shows as the group's right to read.
    """
    try:
        facts = path.lstat()
    except OSError as denied:
        return f"cannot read {path}: {denied.strerror}"
    if stat.S_ISLNK(facts.st_mode):
        return f"{path} is a symlink; name the file itself"
    if not stat.S_ISREG(facts.st_mode):
        return f"{path} is not a file"
    if facts.st_uid not in {os.geteuid(), 0}:
        return f"{path} belongs to uid {facts.st_uid}; `chown` it to the daemon's user"
    spared = stat.S_IRGRP if facts.st_uid == facts.st_gid == 0 and _is_credential(path) else 0
    if facts.st_mode & 0o077 & ~spared:
        return f"{path} can be read by others (mode {facts.st_mode & 0o777:04o}); run `chmod 600 {path}`"
    if not os.access(path, os.R_OK):
        return f"cannot read {path}: permission denied for uid {os.geteuid()}"
    return None


def _is_credential(path: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.parent == Path(str(folder))


@dataclass(frozen=True, slots=True)
class PublicKeyFile:
    """A file with a public key, and the key that was in it when it was read, as `type base64`."""

    path: Path
    key: str

    @classmethod
    def read(cls, path: Path) -> "PublicKeyFile":
        """Read the file; raises ValueError if it cannot be read or holds no public key."""
        text = _text(path)
        try:
            return cls(path, parse_key(text, AUTHORITY_KEY_TYPES))
        except ValueError as odd:
            raise ValueError(f"{path} does not contain a public key: {odd}") from odd


@dataclass(frozen=True, slots=True)
class RevocationFile:
    """A file of revocations, and its entries when it was read: fingerprints, and `serial:N`."""

    path: Path
    entries: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> "RevocationFile":
        """Read the file, one entry a line, `#` before a remark; raises ValueError if it cannot be read."""
        lines = (line.strip() for line in _text(path).splitlines())
        return cls(path, frozenset(line for line in lines if line and not line.startswith("#")))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as denied:
        raise ValueError(f"cannot read {path}: {denied.strerror}") from denied
    except UnicodeDecodeError as odd:
        raise ValueError(f"{path} is not text in UTF-8") from odd
