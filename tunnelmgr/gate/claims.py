"""Which protected tags are being written just now."""

from collections.abc import Iterator
from contextlib import contextmanager

from tunnelmgr.core.tunnel import Endpoint

Tag = tuple[Endpoint, str, str]
"""A registry, a repository of it, and a tag there."""


class Claims:
    """Between the look whether a tag is free and the writing of it, nobody else may do the same."""

    def __init__(self) -> None:
        self._held: set[Tag] = set()

    @contextmanager
    def claim(self, tag: Tag) -> Iterator[bool]:
        """Hold a tag while in here; gives False to who came second."""
        if tag in self._held:
            yield False
            return
        self._held.add(tag)
        try:
            yield True
        finally:
            self._held.discard(tag)
