"""Seals of the audit log: Ed25519 signatures (RFC 8032) with a key in OpenSSH's format, as `ssh-keygen` makes it.

A seal covers its own entry and, by the link before it, everything before. The key may not be used for anything else;
even if it is, the first words of what is signed keep a seal from being valid as anything else.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tunnelmgr.config import private_key_file_error
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.errors import ConfigError

_PURPOSE: Final = b"tunnelmgr audit seal, version 1\n"


@dataclass(frozen=True, slots=True)
class SealKey:
    """A public key that verifies seals."""

    key: Ed25519PublicKey

    @classmethod
    def load(cls, file: Path) -> "SealKey":
        """Read a file such as `audit_ed25519.pub`; raises ConfigError."""
        try:
            text = file.read_bytes()
        except OSError as failed:
            raise ConfigError([f"cannot read {file}: {failed.strerror}"]) from failed
        if b"PRIVATE KEY" in text:
            raise ConfigError([f"{file} is a private key; give the public one, which ssh-keygen wrote as {file}.pub"])
        try:
            key = serialization.load_ssh_public_key(text.strip())
        except (ValueError, UnsupportedAlgorithm) as invalid:
            raise ConfigError([f"{file} is not a public key in OpenSSH's format: {invalid}"]) from invalid
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError([f"{file} is not an Ed25519 key; make one with `ssh-keygen -t ed25519`"])
        return cls(key)

    @property
    def fingerprint(self) -> str:
        """The fingerprint, as `ssh-keygen -l` prints it."""
        form = serialization.PublicFormat.OpenSSH
        return fingerprint(self.key.public_bytes(serialization.Encoding.OpenSSH, form).decode())

    def verifies(self, seal: str, previous: str, body: bytes) -> bool:
        """Return whether a seal is of this key, for this entry after this link."""
        try:
            self.key.verify(base64.b64decode(seal, validate=True), _message(previous, body))
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class SealingKey:
    """The private key that makes seals."""

    key: Ed25519PrivateKey
    fingerprint: str

    @classmethod
    def load(cls, file: Path) -> "SealingKey":
        """Read a private key that only its owner can read; raises ConfigError."""
        place = "controller.audit_key"
        if (wrong := private_key_file_error(file)) is not None:
            raise ConfigError([f"{place}: {wrong}"])
        try:
            key = serialization.load_ssh_private_key(file.read_bytes(), None)
        except TypeError as encrypted:
            raise ConfigError([f"{place}: {file} has a passphrase; the daemon needs a key without one"]) from encrypted
        except (ValueError, UnsupportedAlgorithm, OSError) as invalid:
            raise ConfigError([f"{place}: {file} is not a private key in OpenSSH's format: {invalid}"]) from invalid
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError([f"{place}: {file} is not an Ed25519 key; make one with `ssh-keygen -t ed25519`"])
        return cls(key, SealKey(key.public_key()).fingerprint)

    def seal(self, previous: str, body: bytes) -> str:
        """Return the seal of an entry and of everything before it."""
        return base64.b64encode(self.key.sign(_message(previous, body))).decode()


def _message(previous: str, body: bytes) -> bytes:
    return _PURPOSE + previous.encode() + b"\n" + body
