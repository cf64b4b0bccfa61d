"""What is being written or deleted just now: nobody else may do something different to it meanwhile."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.tunnel import Endpoint

Key = tuple[Endpoint, str, str]
"""A registry, a repository of it, and a tag or a digest there."""
TAGGING: Final = "tagging"
DELETING: Final = "deleting"
"""What a digest is claimed for."""


@dataclass(slots=True)
class _Lock:
    purpose: str
    holders: int


class TagLocks:
    """Tags and digests, each held for one purpose by one request or by several that want the same.

    A look at the registry and the write that follows from it are two requests; a claim makes one step of them. A tag is
    claimed for the digest that it is to point to, a digest for being tagged or for being deleted.
    """

    def __init__(self) -> None:
        self._held: dict[Key, _Lock] = {}

    @contextmanager
    def claim(self, wanted: Mapping[Key, str]) -> Iterator[bool]:
        """Hold every key for its purpose while in here; gives False where one is held for another purpose."""
        if any(key in self._held and self._held[key].purpose != purpose for key, purpose in wanted.items()):
            yield False
            return
        for key, purpose in wanted.items():
            self._held.setdefault(key, _Lock(purpose, 0)).holders += 1
        try:
            yield True
        finally:
            for key in wanted:
                self._held[key].holders -= 1
                if not self._held[key].holders:
                    del self._held[key]
