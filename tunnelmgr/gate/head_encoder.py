"""Writes the heads of forwarded requests and responses, with the header fields that the gate forwards.

To the registry, it forwards the fields that the OCI distribution API and HTTP ranges and conditions need, and no
others: no Authorization, Cookie, Forwarded, X-Forwarded-*, X-HTTP-Method-Override or similar. To the agent, it forwards
all but hop-by-hop fields (RFC 9110, section 7.6.1); `location_rewrite.py` changes Location and Link.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from tunnelmgr.core.oci import BodyKind, RegistryRequest, classify
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.head_parser import BodyFraming, Coding, Field, RequestHead, ResponseHead, connection_options
from tunnelmgr.gate.location_rewrite import rewrite_links

REMEMBERED_HEADS: Final = 256
"""Heads that are written once: the agents of a fleet send the same few requests. Each may have 32 KiB."""
_TO_REGISTRY: Final = frozenset(
    {
        b"accept",
        b"content-range",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
        b"user-agent",
    }
)
_TO_REGISTRY_PREFIXES: Final = (b"oci-", b"docker-")
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


@lru_cache(maxsize=REMEMBERED_HEADS)
def encode_plain_request(head: RequestHead) -> bytes:
    """Return the head of the request for the registry, if it is forwarded as the agent sent it."""
    return encode_request_head(head, classify(head.method, head.target))


def encode_request_head(head: RequestHead, request: RegistryRequest, traceparent: bytes = b"") -> bytes:
    """Return the head of the request for the registry, written from parsed parts only, with a trace's context."""
    dropped = connection_options(head.fields)
    lines = [f"{request.method} {request.target()} HTTP/1.1\r\nHost: {head.host}\r\n".encode("ascii")]
    lines += [b"%b: %b\r\n" % field for field in head.fields if field[0] not in dropped and _is_forwarded(field[0])]
    if head.body.coding is not Coding.NONE:
        lines.append(b"Content-Type: %b\r\n" % _content_type(head, request))
    if request.body is not BodyKind.NONE:
        lines.append(_framing_line(head.body))
    if traceparent:
        lines.append(b"Traceparent: %b\r\n" % traceparent)
    lines.append(b"\r\n")
    return b"".join(lines)


@lru_cache(maxsize=REMEMBERED_HEADS)
def encode_response_head(
    response: ResponseHead, *, location: str | None, host: str, target: Endpoint, close: bool
) -> bytes:
    """Return the head of the response for the agent, with the given Location instead of the registry's."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (response.status, response.reason)]
    if location is not None:
        lines.append(f"Location: {location}\r\n".encode("latin-1"))
    for name, value in _fields_for_agent(response):
        if name == b"link":
            lines += [f"Link: {link}\r\n".encode("latin-1") for link in rewrite_links(value, host, target)]
        else:
            lines.append(b"%b: %b\r\n" % (name.title(), value))
    if response.body.coding in {Coding.CHUNKED, Coding.UNTIL_CLOSE}:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if close:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def _is_forwarded(name: bytes) -> bool:
    return name in _TO_REGISTRY or name.startswith(_TO_REGISTRY_PREFIXES)


def _content_type(head: RequestHead, request: RegistryRequest) -> bytes:
    """Return the body's type; a blob is always plain bytes, regardless of the type that the agent sends."""
    given = [value for name, value in head.fields if name == b"content-type"]
    return given[0] if given and request.body is BodyKind.MANIFEST else b"application/octet-stream"


def _framing_line(body: BodyFraming) -> bytes:
    if body.coding is Coding.CHUNKED:
        return b"Transfer-Encoding: chunked\r\n"
    return b"Content-Length: %d\r\n" % body.length


def _fields_for_agent(response: ResponseHead) -> Iterator[Field]:
    dropped = connection_options(response.fields) | _HOP_BY_HOP | {b"location"}
    if response.body.coding in {Coding.CHUNKED, Coding.UNTIL_CLOSE}:
        dropped |= {b"content-length"}
    return (field for field in response.fields if field[0] not in dropped)
