"""Private keys in files: read, generated, and their public halves."""

import os
from pathlib import Path

import asyncssh

from tunnelmgr.config import SshConfig
from tunnelmgr.errors import ConfigError


def load_key(file: Path) -> asyncssh.SSHKey:
    """Read a private key; raises ConfigError naming the file."""
    try:
        return asyncssh.read_private_key(file)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError) as invalid:
        if "passphrase" in str(invalid).lower():
            raise ConfigError([f"ssh.key: {file} has a passphrase; the daemon needs a key without one"]) from invalid
        raise ConfigError([f"ssh.key: {file} is not a private key in OpenSSH format: {invalid}"]) from invalid


def make_key(file: Path, comment: str) -> None:
    """Write a new Ed25519 key that only its owner can read; raises FileExistsError instead of replacing a file."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
        out.write(key.export_private_key())


def public_line(file: Path) -> str:
    """Return a private key's public half as `type base64`; raises ConfigError."""
    return _public_half(load_key(file))


def public_lines(config: SshConfig) -> list[str]:
    """Return the public halves that agents must accept, including the next key; raises ConfigError without a file."""
    files = [file for file in (config.key, config.next_key) if file is not None]
    if not files:
        raise ConfigError(["ssh.key: no file is configured; `ssh-add -L` prints the public keys of an ssh-agent"])
    return [public_line(file) for file in files]


def fresh_host_key(comment: str) -> tuple[str, str]:
    """Return a new Ed25519 host key: its private half in OpenSSH format, and its public half as `type base64`."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    return key.export_private_key("openssh").decode(), _public_half(key)


def _public_half(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key("openssh").decode().split()[:2])
