"""Locks on the tags and digests that a push or a delete is working on; see "Tag locks" in `gate/__init__.py`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.tunnel import Endpoint

LockKey = tuple[Endpoint, str, str]
"""A registry, one of its repositories, and a tag or a digest in it."""
TAGGING: Final = "tagging"
DELETING: Final = "deleting"
"""The purposes of a lock on a digest; the purpose of a lock on a tag is the digest that the tag is to point to."""


@dataclass(slots=True)
class _Lock:
    purpose: str
    holders: int


class TagLocks:
    """Locks on tags and digests; requests with the same purpose hold a lock together, others are refused at once."""

    def __init__(self) -> None:
        self._locks: dict[LockKey, _Lock] = {}

    @contextmanager
    def try_lock(self, wanted: Mapping[LockKey, str]) -> Iterator[bool]:
        """Hold a lock on every key for its purpose; yields False if one is held for another purpose."""
        if any(key in self._locks and self._locks[key].purpose != purpose for key, purpose in wanted.items()):
            yield False
            return
        for key, purpose in wanted.items():
            self._locks.setdefault(key, _Lock(purpose, 0)).holders += 1
        try:
            yield True
        finally:
            for key in wanted:
                self._locks[key].holders -= 1
                if not self._locks[key].holders:
                    del self._locks[key]
