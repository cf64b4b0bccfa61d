"""The controller's own key."""

import os
from pathlib import Path

import asyncssh

from tunnelmgr.errors import ConfigError


def load_key(file: Path) -> asyncssh.SSHKey:
    """Read a private key; raises ConfigError naming the file."""
    try:
        return asyncssh.read_private_key(file)
    except asyncssh.KeyEncryptionError as locked:
        raise ConfigError([f"ssh.key: {file} has a passphrase; the daemon needs one without"]) from locked
    except (asyncssh.KeyImportError, OSError) as odd:
        raise ConfigError([f"ssh.key: {file} is no private key in OpenSSH's form: {odd}"]) from odd


def make_key(file: Path, comment: str) -> None:
    """Write a fresh Ed25519 key that only its owner can read; raises FileExistsError rather than replace one."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
        out.write(key.export_private_key())


def public_line(file: Path) -> str:
    """Return a private key's public half as `type base64`; raises ConfigError."""
    return " ".join(load_key(file).export_public_key("openssh").decode().split()[:2])
