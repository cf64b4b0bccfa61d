"""A manifest: as an agent pushes it, read whole, and as a registry says that a tag points to it."""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from tunnelmgr.errors import GateError

MAX_MANIFEST: Final = 4 * 1024 * 1024
"""Bytes of a manifest that is read before it is passed on; docker-registry takes no longer ones either."""
_ALGORITHMS: Final = frozenset({"sha256", "sha512"})
"""The registered algorithms (OCI image spec, "Digests")."""


class ManifestTooLargeError(GateError):
    """The agent sends a manifest that no registry has to accept."""

    code = "manifest-too-large"

    def __init__(self) -> None:
        super().__init__(f"the manifest is longer than {MAX_MANIFEST} bytes, which is the limit for a protected tag")


@dataclass(frozen=True, slots=True)
class TaggedManifest:
    """What a tag points to: the manifest's digest and its media type, each empty if the registry does not report it."""

    digest: str
    media_type: bytes


@dataclass(slots=True)
class PushedManifest:
    """A manifest as it arrives; it is hashed piece by piece, since the loop waits while 4 MiB are hashed at once."""

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

    def is_same(self, there: TaggedManifest) -> bool:
        """Whether a tag points to these bytes under the same media type, which some registries keep apart from them."""
        algorithm = there.digest.partition(":")[0]
        if algorithm not in _ALGORITHMS or there.media_type != self.media_type:
            return False
        own = (
            self.digest if algorithm == "sha256" else f"{algorithm}:{hashlib.new(algorithm, self.content).hexdigest()}"
        )
        return own == there.digest


def media_type(content_type: bytes) -> bytes:
    """Return a Content-Type without its parameters, in lower case (RFC 9110, section 8.3.1)."""
    return content_type.partition(b";")[0].strip().lower()
