"""What it takes to believe that a machine is the agent: host keys to expect, and how good the word for them is."""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from enum import StrEnum


class Method(StrEnum):
    """How evidence was had, strongest first."""

    AUTHORITY = "authority"
    SEEDED = "seeded"
    PINNED = "pinned"
    CONSOLE = "console"
    LABEL = "label"
    TOFU = "tofu"

    def reaches(self, minimum: "Method") -> bool:
        """Tell whether this method is at least as strong as `minimum`."""
        return self.strength >= minimum.strength

    @property
    def strength(self) -> int:
        """How strong the method is, against others; greater is stronger."""
        return -_ORDER[self]


_ORDER = {method: rank for rank, method in enumerate(Method)}

REMEMBERED = frozenset({Method.SEEDED, Method.CONSOLE, Method.TOFU})
"""Evidence that can be had once only, so it is kept as a pin; the rest is asked for again at every start."""


PER_LIFE = frozenset({Method.AUTHORITY, Method.LABEL})
"""Evidence that the agent itself shows and that may run out, so that each life of a tunnel asks for it anew."""


@dataclass(frozen=True, slots=True)
class HostTrust:
    """Evidence for one incarnation: its public host keys as `type base64`, without comment.

    `detail` says for people where the evidence comes from; two pieces of evidence that differ only there are equal.
    """

    method: Method
    keys: tuple[str, ...]
    detail: str = field(default="", compare=False)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The keys' fingerprints, as `ssh-keygen -l` prints them."""
        return tuple(fingerprint(key) for key in self.keys)


KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


def public_key(kind: str, body: str) -> str:
    """Return `type base64` of a public key that is whole; raises ValueError, saying why, where it is not.

    RFC 4253, 6.6: the blob is a row of strings, each after its length, and the first one is the type again.
    """
    if kind not in KEY_TYPES:
        raise ValueError(f"{kind} is no type of host key")
    try:
        rest = base64.b64decode(body, validate=True)
    except binascii.Error as odd:
        raise ValueError("the key is cut off, or no base64") from odd
    fields = []
    while rest:
        end = 4 + int.from_bytes(rest[:4], "big")
        if end > len(rest):
            raise ValueError("the key is cut off")
        fields.append(rest[4:end])
        rest = rest[end:]
    if len(fields) < 2 or fields[0] != kind.encode():  # noqa: PLR2004 - its type, and the key itself
        raise ValueError("the key is of another type than its line says")
    return f"{kind} {body}"


def fingerprint(key: str) -> str:
    """Return `SHA256:…` of a public key given as `type base64`."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
