"""Manifests: one that an agent pushes, read whole, and the one that a tag points to, as the registry reports it."""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from tunnelmgr.errors import GateError

MAX_MANIFEST: Final = 4 * 1024 * 1024
"""Bytes of a manifest that is read before it is forwarded; docker-registry has the same limit."""
_ALGORITHMS: Final = frozenset({"sha256", "sha512"})
"""The registered algorithms (OCI image spec, "Digests")."""


class ManifestTooLargeError(GateError):
    """The agent pushes a manifest that is too long to be read into memory."""

    code = "manifest-too-large"

    def __init__(self) -> None:
        super().__init__(f"the manifest is longer than {MAX_MANIFEST} bytes, which is the limit for a protected tag")


@dataclass(frozen=True, slots=True)
class TaggedManifest:
    """The manifest that a tag points to: digest and media type, each empty if the registry does not report it."""

    digest: str
    media_type: bytes


@dataclass(slots=True)
class PushedManifest:
    """A manifest as it arrives; it is hashed piece by piece, since hashing 4 MiB at once would block the event loop."""

    media_type: bytes
    content: bytearray = field(default_factory=bytearray)
    _sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, piece: bytes | memoryview) -> None:
        """Append a piece; raises ManifestTooLargeError."""
        if len(self.content) + len(piece) > MAX_MANIFEST:
            raise ManifestTooLargeError
        self.content += piece
        self._sha256.update(piece)

    @property
    def digest(self) -> str:
        """The digest by the canonical algorithm."""
        return f"sha256:{self._sha256.hexdigest()}"

    def is_same(self, tagged: TaggedManifest) -> bool:
        """Whether a tag points to the same bytes and media type, since some registries store the type separately."""
        algorithm = tagged.digest.partition(":")[0]
        if algorithm not in _ALGORITHMS or tagged.media_type != self.media_type:
            return False
        digest = (
            self.digest if algorithm == "sha256" else f"{algorithm}:{hashlib.new(algorithm, self.content).hexdigest()}"
        )
        return digest == tagged.digest


def media_type(content_type: bytes) -> bytes:
    """Return a Content-Type without its parameters, in lower case (RFC 9110, section 8.3.1)."""
    return content_type.partition(b";")[0].strip().lower()
