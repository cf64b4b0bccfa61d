"""Pulls by digest that the cache serves, once the registry has confirmed that the repository holds the digest.

The policy has allowed the pull before. The response is the registry's own: the head is that of its answer to HEAD, and
the content is verified against the digest. The registry answers everything else itself: ranges of other
forms, conditions, a digest that it does not confirm, a pull whose download cannot start.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from tunnelmgr.cache.blob_cache import BlobCache
from tunnelmgr.cache.content import Content
from tunnelmgr.cache.download import BlobSource
from tunnelmgr.cache.small_contents import MAX_SMALL_BYTES, SmallContents
from tunnelmgr.core.oci import RegistryRequest, Route, classify
from tunnelmgr.gate.authorized_request import AuthorizedRequest
from tunnelmgr.gate.connected_registry import ConnectedRegistry
from tunnelmgr.gate.head_encoder import REMEMBERED_HEADS, encode_request_head
from tunnelmgr.gate.head_parser import LENGTH, BodyFraming, Coding, RequestHead, ResponseHead
from tunnelmgr.gate.holdings import Holdings, Question
from tunnelmgr.gate.registry_pool import Answer
from tunnelmgr.gate.request_trace import Stage
from tunnelmgr.gate.shared_requests import SharedRequests

_ALGORITHMS: Final = ("sha256:", "sha512:")
_RANGE: Final = re.compile(rb"bytes=([0-9]{0,18})-([0-9]{0,18})")
_CONDITIONS: Final = frozenset(
    {b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since"}
)


@dataclass(slots=True)
class CacheCounts:
    """Pulls by digest since the start, and the bytes of those from the cache, for the metrics."""

    hits: int = 0
    misses: int = 0
    bypassed: int = 0
    octets: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of a content that a response has: from `start` to before `end`; `partial` if a range was requested."""

    start: int
    end: int
    partial: bool


@dataclass(frozen=True, slots=True)
class CachedPulls:
    """The cache as the gate uses it."""

    shared: SharedRequests
    holdings: Holdings
    blobs: BlobCache
    small: SmallContents = field(default_factory=SmallContents)
    counts: CacheCounts = field(default_factory=CacheCounts)

    async def serve(self, pull: AuthorizedRequest, registry: ConnectedRegistry, agent: Hashable) -> bool:
        """Answer a pull; returns False if the registry has to answer it. Raises as `Exchange` does."""
        head, request = pull.head, pull.request
        if not is_cacheable(head, request):
            return False
        pull.state.enter(Stage.CACHE)
        asked, wire = _question_about(head)
        question = self.holdings.question(registry.endpoint, request.repository, wire)
        if request.route is Route.MANIFEST and head.method == "GET":
            return await self._serve_manifest(pull, registry, question, asked)
        confirmed = await self._confirmed(question, registry)
        if confirmed is None:
            self.counts.bypassed += 1
            return False
        if head.method == "HEAD":
            await pull.exchange.forward_answer(head, request, Answer(confirmed))
            return True
        return await self._serve_blob(pull, registry, confirmed, agent)

    async def _confirmed(self, question: Question, registry: ConnectedRegistry) -> ResponseHead | None:
        """Return the head of the registry's answer to HEAD, None if it does not confirm a content with a length."""
        if (remembered := self.holdings.find(question)) is not None:
            return remembered
        answer = await self.shared.answer("HEAD", question.wire, registry.connection.slot)
        if answer is None or answer.head.status != HTTPStatus.OK or length_of(answer.head) is None:
            return None
        self.holdings.remember(question, answer.head)
        return answer.head

    async def _serve_manifest(
        self, pull: AuthorizedRequest, registry: ConnectedRegistry, question: Question, asked: RequestHead
    ) -> bool:
        """Answer a GET of a manifest; without a confirmation, the registry's answer to GET is one."""
        head, request = pull.head, pull.request
        if any(name == b"range" for name, _ in head.fields):
            return False
        confirmed, content = self.holdings.find(question), self.small.find(request.reference)
        if confirmed is not None and content is not None and length_of(confirmed) == len(content):
            self._count_hit(len(content))
            await pull.exchange.forward_answer(head, request, _whole(confirmed, content))
            return True
        answer = await self.shared.answer("GET", encode_request_head(asked, request), registry.connection.slot)
        if answer is None:
            self.counts.bypassed += 1
            return False
        self.counts.misses += 1
        if answer.head.status == HTTPStatus.OK and self.small.add(request.reference, answer.body):
            self.holdings.remember(question, answer.head)
        await pull.exchange.forward_answer(head, request, answer)
        return True

    async def _serve_blob(
        self, pull: AuthorizedRequest, registry: ConnectedRegistry, confirmed: ResponseHead, agent: Hashable
    ) -> bool:
        head, request, octets = pull.head, pull.request, length_of(confirmed)
        span = span_of(head, octets) if octets else None
        if octets is None or span is None:
            self.counts.bypassed += 1
            return False
        if octets <= MAX_SMALL_BYTES:
            return await self._serve_small(pull, registry, confirmed, span)
        content = self._open(pull, registry, octets, span, agent)
        if content is None:
            self.counts.bypassed += 1
            return False
        reader = content.reader(span.start, span.end)
        try:
            response = _response(confirmed, octets, span)
            return await pull.exchange.forward_content(head, request, response, reader, span.end)
        finally:
            self.counts.octets += reader.position - span.start
            reader.close()

    def _open(
        self, pull: AuthorizedRequest, registry: ConnectedRegistry, octets: int, span: Span, agent: Hashable
    ) -> Content | None:
        """Return the blob, complete or on its way, None if what is wanted of it would have to wait for other parts."""
        request = pull.request
        if (found := self.blobs.find(request.reference, octets, span.start)) is not None:
            self.counts.hits += 1
            return found
        if span.start or span.end < octets:
            return None
        source = BlobSource(registry.endpoint, request.target(), pull.head.host, request.reference, octets)
        content = self.blobs.download(source, agent)
        if content is not None:
            self.counts.misses += 1
        return content

    async def _serve_small(
        self, pull: AuthorizedRequest, registry: ConnectedRegistry, confirmed: ResponseHead, span: Span
    ) -> bool:
        head, request = pull.head, pull.request
        content = self.small.find(request.reference)
        if content is not None and len(content) == length_of(confirmed):
            self._count_hit(span.end - span.start)
        else:
            asked, _ = _question_about(head)
            answer = await self.shared.answer("GET", encode_request_head(asked, request), registry.connection.slot)
            if (
                answer is None
                or answer.head.status != HTTPStatus.OK
                or len(answer.body) != length_of(confirmed)
                or not self.small.add(request.reference, answer.body)
            ):
                self.counts.bypassed += 1
                return False
            self.counts.misses += 1
            content = answer.body
        response = _response(confirmed, len(content), span)
        await pull.exchange.forward_answer(head, request, Answer(response, content[span.start : span.end]))
        return True

    def _count_hit(self, octets: int) -> None:
        self.counts.hits += 1
        self.counts.octets += octets


def is_cacheable(head: RequestHead, request: RegistryRequest) -> bool:
    """Whether a request is for one content by its digest, without conditions."""
    if request.route not in {Route.BLOB, Route.MANIFEST} or not request.reference.startswith(_ALGORITHMS):
        return False
    return not any(name in _CONDITIONS or (name == b"range" and head.method == "HEAD") for name, _ in head.fields)


def length_of(response: ResponseHead) -> int | None:
    """Return the Content-Length of an answer to HEAD, None unless there is exactly one."""
    match [value for name, value in response.fields if name == b"content-length"]:
        case [value] if LENGTH.fullmatch(value):
            return int(value)
    return None


def span_of(head: RequestHead, octets: int) -> Span | None:
    """Return what a GET of a content asks for, None if the registry should decide (RFC 9110, section 14.1.2)."""
    ranges = [value for name, value in head.fields if name == b"range"]
    if not ranges:
        return Span(0, octets, partial=False)
    matched = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    if matched is None or not (matched[1] or matched[2]):
        return None
    if matched[1]:
        start, end = int(matched[1]), int(matched[2]) + 1 if matched[2] else octets
    else:
        start, end = max(0, octets - int(matched[2])), octets
    end = min(end, octets)
    return Span(start, end, partial=True) if start < end else None


@lru_cache(maxsize=REMEMBERED_HEADS)
def _question_about(head: RequestHead) -> tuple[RequestHead, bytes]:
    """Return a pull without its range, and the HEAD request that asks whether the content is there."""
    asked = replace(head, fields=tuple(field for field in head.fields if field[0] != b"range"))
    return asked, encode_request_head(asked, classify("HEAD", head.target))


def _whole(confirmed: ResponseHead, content: bytes) -> Answer:
    return Answer(_response(confirmed, len(content), Span(0, len(content), partial=False)), content)


@lru_cache(maxsize=REMEMBERED_HEADS)
def _response(confirmed: ResponseHead, octets: int, span: Span) -> ResponseHead:
    """Return the head of a response to GET, made from that to HEAD."""
    framing = BodyFraming(Coding.COUNTED, span.end - span.start)
    if not span.partial:
        return replace(confirmed, body=framing)
    kept = [field for field in confirmed.fields if field[0] != b"content-length"]
    kept.append((b"content-range", b"bytes %d-%d/%d" % (span.start, span.end - 1, octets)))
    kept.append((b"content-length", b"%d" % framing.length))
    status = HTTPStatus.PARTIAL_CONTENT
    return replace(confirmed, status=int(status), reason=status.phrase.encode(), fields=tuple(kept), body=framing)
