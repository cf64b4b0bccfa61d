"""Public keys of SSH: their types and algorithms, how one is read from a line or a blob, and its fingerprint.

Everywhere else a key is the text `type base64` without a comment, as `parse_key` returns it: two texts are equal if and
only if the keys are. A blob is the binary form (RFC 4253, section 6.6): a sequence of strings, each preceded by
its length (RFC 4251, section 5); the first string is the type.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class KeyType:
    """A type of public key.

    `fields` is the number of strings after the type in a blob; `algorithms` are those that sign with such a key, best
    first. `ssh-rsa` is also the name of an algorithm, which uses SHA-1 and is in none of the lists here.
    """

    fields: int
    algorithms: tuple[str, ...]


HOST_KEY_TYPES: Final[Mapping[str, KeyType]] = MappingProxyType(
    {
        "ssh-ed25519": KeyType(1, ("ssh-ed25519",)),  # RFC 8709
        "ecdsa-sha2-nistp256": KeyType(2, ("ecdsa-sha2-nistp256",)),  # RFC 5656
        "ecdsa-sha2-nistp384": KeyType(2, ("ecdsa-sha2-nistp384",)),
        "ecdsa-sha2-nistp521": KeyType(2, ("ecdsa-sha2-nistp521",)),
        "ssh-rsa": KeyType(2, ("rsa-sha2-512", "rsa-sha2-256")),  # RFC 8332
    }
)
"""The types that a host key may have, best first."""
AUTHORITY_KEY_TYPES: Final[Mapping[str, KeyType]] = MappingProxyType(
    {
        **HOST_KEY_TYPES,
        "sk-ssh-ed25519@openssh.com": KeyType(2, ("sk-ssh-ed25519@openssh.com",)),  # OpenSSH's PROTOCOL.u2f
        "sk-ecdsa-sha2-nistp256@openssh.com": KeyType(3, ("sk-ecdsa-sha2-nistp256@openssh.com",)),
    }
)
"""The types that the key of a certificate authority may have: those, and keys in a FIDO security key."""
CERTIFICATE_SUFFIX: Final = "-cert-v01@openssh.com"
"""The end of the type of a certificate, after the type of the key in it (OpenSSH's PROTOCOL.certkeys)."""
HOST_KEY_ALGORITHMS: Final = tuple(name for kind in HOST_KEY_TYPES.values() for name in kind.algorithms)
"""The algorithms by which a host key is accepted, best first."""
HOST_CERTIFICATE_ALGORITHMS: Final = tuple(name + CERTIFICATE_SUFFIX for name in HOST_KEY_ALGORITHMS)
"""The algorithms by which a host certificate is accepted, best first."""
AUTHORITY_ALGORITHMS: Final = frozenset(name for kind in AUTHORITY_KEY_TYPES.values() for name in kind.algorithms)
"""The algorithms by which an authority may sign a certificate: CASignatureAlgorithms of ssh_config(5)."""


def parse_key(line: str, types: Mapping[str, KeyType] = HOST_KEY_TYPES) -> str:
    """Return the key of a line such as `ssh-ed25519 AAAA… comment` as `type base64`.

    Raises ValueError, with the reason, if the type is not one of `types` or the key is incomplete.
    """
    kind, _, rest = line.strip().partition(" ")
    if kind not in types:
        raise ValueError(f"unknown key type {kind!r}; known are {', '.join(types)}")
    try:
        blob = base64.b64decode(rest.strip().partition(" ")[0], validate=True)
    except (binascii.Error, ValueError) as invalid:
        raise ValueError("the key is truncated or not base64") from invalid
    if not blob:
        raise ValueError("the key is missing after its type")
    reader = BlobReader(blob)
    found = reader.text()
    if found != kind:
        raise ValueError(f"the key is of type {found!r}, but its line says {kind}")
    for _ in range(types[kind].fields):
        reader.string()
    if not reader.at_end:
        raise ValueError("the key has extra data at its end")
    return key_from_blob(blob)


def key_from_blob(blob: bytes) -> str:
    """Return a blob as `type base64`; of the blob only its type is read. Raises ValueError if it has none."""
    return f"{BlobReader(blob).text()} {base64.b64encode(blob).decode()}"


def blob_of(key: str) -> bytes:
    """Return the blob of a key given as `type base64`."""
    return base64.b64decode(key.split()[1])


def type_of(key: str) -> str:
    """Return the type of a key given as `type base64`."""
    return key.split(maxsplit=1)[0]


def is_certificate(blob: bytes) -> bool:
    """Return whether a blob is a certificate; raises ValueError if it has no type."""
    return BlobReader(blob).text().endswith(CERTIFICATE_SUFFIX)


def fingerprint(key: str) -> str:
    """Return the fingerprint of a key given as `type base64`, as `ssh-keygen -l` prints it: `SHA256:…`."""
    digest = hashlib.sha256(blob_of(key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def algorithms_of(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the algorithms by which a server can present these host keys, given as `type base64`, best first."""
    types = {type_of(key) for key in keys}
    return tuple(name for kind, facts in HOST_KEY_TYPES.items() if kind in types for name in facts.algorithms)


class BlobReader:
    """Reads the data types of RFC 4251, section 5, from the front of a blob; raises ValueError if it is too short."""

    def __init__(self, blob: bytes) -> None:
        self._rest = blob

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return not self._rest

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if len(self._rest) < count:
            raise ValueError("the key or certificate is truncated")
        head, self._rest = self._rest[:count], self._rest[count:]
        return head

    def number(self, size: int) -> int:
        """Return an unsigned number of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        """Return a string, which is preceded by its length."""
        return self.take(self.number(4))

    def text(self) -> str:
        """Return a string in UTF-8."""
        try:
            return self.string().decode("utf-8")
        except UnicodeDecodeError as invalid:
            raise ValueError("a name in the key or certificate is not UTF-8") from invalid

    def texts(self) -> tuple[str, ...]:
        """Return every string to the end."""
        found = []
        while not self.at_end:
            found.append(self.text())
        return tuple(found)
