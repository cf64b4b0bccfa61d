"""Which header fields pass the gate, and how heads are written anew.

Towards the registry, only what the OCI distribution API and HTTP ranges and conditions need. Everything else stays
behind by not being named: Authorization, Cookie, Forwarded and X-Forwarded-*, X-HTTP-Method-Override and their kin.
Towards the agent, everything but hop-by-hop fields (RFC 9110, section 7.6.1); for Location and Link see `follow`.
"""

from collections.abc import Iterator
from typing import Final

from tunnelmgr.core.oci import BodyKind, RegistryRequest
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.head_parser import BodyFraming, Coding, Field, RequestHead, ResponseHead, connection_options
from tunnelmgr.gate.location_rewrite import rewrite_links

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


def encode_request_head(head: RequestHead, request: RegistryRequest) -> bytes:
    """Write the request for the registry, from parsed parts only."""
    dropped = connection_options(head.fields)
    lines = [f"{request.method} {request.target()} HTTP/1.1\r\nHost: {head.host}\r\n".encode("ascii")]
    lines += [
        b"%b: %b\r\n" % field for field in head.fields if field[0] not in dropped and _passes_to_registry(field[0])
    ]
    if head.body.coding is not Coding.NONE:
        lines.append(b"Content-Type: %b\r\n" % _content_type(head, request))
    if request.body is not BodyKind.NONE:
        lines.append(_length_line(head.body))
    lines.append(b"\r\n")
    return b"".join(lines)


def encode_response_head(
    answer: ResponseHead, *, location: str | None, host: str, target: Endpoint, close: bool
) -> bytes:
    """Write the answer's head for the agent, with the given Location instead of the registry's."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (answer.status, answer.reason)]
    if location is not None:
        lines.append(f"Location: {location}\r\n".encode("latin-1"))
    for name, value in _passing_to_agent(answer):
        if name == b"link":
            lines += [f"Link: {link}\r\n".encode("latin-1") for link in rewrite_links(value, host, target)]
        else:
            lines.append(b"%b: %b\r\n" % (name.title(), value))
    if answer.body.coding in {Coding.CHUNKED, Coding.UNTIL_CLOSE}:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if close:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def _passes_to_registry(name: bytes) -> bool:
    return name in _TO_REGISTRY or name.startswith(_TO_REGISTRY_PREFIXES)


def _content_type(head: RequestHead, request: RegistryRequest) -> bytes:
    """Return what the body is; a blob is always plain bytes, whatever the agent calls it."""
    given = [value for name, value in head.fields if name == b"content-type"]
    return given[0] if given and request.body is BodyKind.MANIFEST else b"application/octet-stream"


def _length_line(body: BodyFraming) -> bytes:
    if body.coding is Coding.CHUNKED:
        return b"Transfer-Encoding: chunked\r\n"
    return b"Content-Length: %d\r\n" % body.length


def _passing_to_agent(answer: ResponseHead) -> Iterator[Field]:
    dropped = connection_options(answer.fields) | _HOP_BY_HOP | {b"location"}
    if answer.body.coding in {Coding.CHUNKED, Coding.UNTIL_CLOSE}:
        dropped |= {b"content-length"}
    return (field for field in answer.fields if field[0] not in dropped)
