"""The files of an authority: its public key, and what it has revoked."""

from dataclasses import dataclass
from pathlib import Path

from tunnelmgr.core.host_key import AUTHORITY_KEY_TYPES, parse_key


@dataclass(frozen=True, slots=True)
class PublicKeyFile:
    """A file with a public key, and the key that it contained when it was read, as `type base64`."""

    path: Path
    key: str

    @classmethod
    def read(cls, path: Path) -> "PublicKeyFile":
        """Read the file; raises ValueError if it cannot be read or does not contain a public key."""
        text = _text(path)
        try:
            return cls(path, parse_key(text, AUTHORITY_KEY_TYPES))
        except ValueError as invalid:
            raise ValueError(f"{path} does not contain a public key: {invalid}") from invalid


@dataclass(frozen=True, slots=True)
class RevocationFile:
    """A file of revocations, and its entries when it was read: fingerprints, and `serial:N`."""

    path: Path
    entries: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> "RevocationFile":
        """Read the file, one entry on each line, `#` before a comment; raises ValueError if it cannot be read."""
        lines = (line.strip() for line in _text(path).splitlines())
        return cls(path, frozenset(line for line in lines if line and not line.startswith("#")))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as denied:
        raise ValueError(f"cannot read {path}: {denied.strerror}") from denied
    except UnicodeDecodeError as invalid:
        raise ValueError(f"{path} is not UTF-8 text") from invalid
