"""What the registry has said it holds: which repository has which digest, remembered for a few seconds.

The cache serves a digest for a repository only if the registry has just confirmed that it is there. A delete through
this gate ends what was remembered of its repository at once; one behind the gate's back takes effect after
`REMEMBERED_SECONDS`.
"""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.head_parser import ResponseHead

REMEMBERED_SECONDS: Final = 10.0
"""For how long a confirmation holds."""
MAX_HOLDINGS: Final = 20_000
"""Confirmations that are remembered; the oldest leave first."""
_BUCKETS: Final = 256


@dataclass(frozen=True, slots=True)
class Question:
    """One question to a registry: the bytes of the HEAD request, for a digest in a repository.

    Two agents' questions are the same only if the registry sees no difference. `asked` is the count of the repository's
    deletes when it was asked.
    """

    registry: Endpoint
    repository: str
    wire: bytes
    asked: int

    @property
    def key(self) -> tuple[Endpoint, str, bytes]:
        """What it is remembered by; a hash, since a head may have 32 KiB."""
        return self.registry, self.repository, hashlib.blake2b(self.wire, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Confirmed:
    head: ResponseHead
    until: float
    deletes: int


class Holdings:
    """The confirmations of all registries."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._confirmed: OrderedDict[tuple[Endpoint, str, bytes], _Confirmed] = OrderedDict()
        # Counted in buckets, so that names which agents choose take no memory; a collision only costs a question.
        self._deletes: Counter[int] = Counter()
        self._deleting: Counter[int] = Counter()

    def question(self, registry: Endpoint, repository: str, wire: bytes) -> Question:
        """Return the question whether a repository holds what the HEAD request `wire` is for."""
        return Question(registry, repository, wire, self._deletes[_bucket(repository)])

    def find(self, question: Question) -> ResponseHead | None:
        """Return the registry's confirmation, None if it must be asked."""
        confirmed = self._confirmed.get(question.key)
        if confirmed is None:
            return None
        if self._clock() >= confirmed.until or confirmed.deletes != self._deletes[_bucket(question.repository)]:
            del self._confirmed[question.key]
            return None
        return confirmed.head

    def remember(self, question: Question, head: ResponseHead) -> None:
        """Remember a confirmation, unless something was deleted from the repository since the question."""
        bucket = _bucket(question.repository)
        if self._deleting[bucket] or question.asked != self._deletes[bucket]:
            return
        self._confirmed[question.key] = _Confirmed(head, self._clock() + REMEMBERED_SECONDS, question.asked)
        self._confirmed.move_to_end(question.key)
        while len(self._confirmed) > MAX_HOLDINGS:
            self._confirmed.popitem(last=False)

    @contextmanager
    def deleting(self, repository: str) -> Iterator[None]:
        """Forget a repository's confirmations, and remember none whose question is older than the delete's end."""
        bucket = _bucket(repository)
        self._deletes[bucket] += 1
        self._deleting[bucket] += 1
        try:
            yield
        finally:
            self._deletes[bucket] += 1
            self._deleting[bucket] -= 1


def _bucket(repository: str) -> int:
    return hash(repository) % _BUCKETS
