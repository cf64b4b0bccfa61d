"""Whether a private key file is safe to use."""

import os
import pwd
import stat
from pathlib import Path


def private_key_file_error(path: Path) -> str | None:  # noqa: PLR0911 - one return for each error
    """Return what is wrong with a private key file, None if it is safe to use.

    A key that others can read is refused, as ssh(1) does; so are symlinks and files of other users. A systemd
    credential belongs to root, and the service's user may read it by an access list, which shows as the group's
    permission to read.
    """
    try:
        facts = path.lstat()
    except OSError as denied:
        return f"cannot read {path}: {denied.strerror}"
    if stat.S_ISLNK(facts.st_mode):
        return f"{path} is a symlink; name the file itself"
    if not stat.S_ISREG(facts.st_mode):
        return f"{path} is not a regular file"
    if facts.st_uid not in {os.geteuid(), 0}:
        owner, me = _user(facts.st_uid), _user(os.geteuid())
        return f"{path} belongs to {owner}, not to {me}: run this as {owner}, or `chown` the file to the daemon's user"
    credential = stat.S_IRGRP if facts.st_uid == facts.st_gid == 0 and _is_credential(path) else 0
    if facts.st_mode & 0o077 & ~credential:
        return f"{path} can be read by others (mode {facts.st_mode & 0o777:04o}); run `chmod 600 {path}`"
    if not os.access(path, os.R_OK):
        return f"cannot read {path}: permission denied for uid {os.geteuid()}"
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _is_credential(path: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.parent == Path(str(folder))
