"""Manifests and configurations in memory, by digest."""

import hashlib
from collections import OrderedDict
from typing import Final

MAX_SMALL_BYTES: Final = 64 * 1024
"""Bytes of a content that is kept in memory."""
MAX_TOTAL_BYTES: Final = 32 * 1024 * 1024
"""Bytes of all contents in memory."""


class SmallContents:
    """Verified contents; the least recently used leave first."""

    def __init__(self, limit: int = MAX_TOTAL_BYTES) -> None:
        self._limit = limit
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self.octets = 0
        """Bytes that are kept."""

    def find(self, digest: str) -> bytes | None:
        """Return a content, None if it is not kept."""
        content = self._contents.get(digest)
        if content is not None:
            self._contents.move_to_end(digest)
        return content

    def add(self, digest: str, content: bytes) -> bool:
        """Keep a content if it is small; returns False, and keeps nothing, if it has another digest."""
        algorithm, _, expected = digest.partition(":")
        if hashlib.new(algorithm, content).hexdigest() != expected:
            return False
        if len(content) <= MAX_SMALL_BYTES and digest not in self._contents:
            self._contents[digest] = content
            self.octets += len(content)
            while self.octets > self._limit:
                self.octets -= len(self._contents.popitem(last=False)[1])
        return True
