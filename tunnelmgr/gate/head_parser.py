"""Parses the head of an HTTP message: bytes in, `RequestHead` or `ResponseHead` out, no I/O.

The parser is strict. It refuses what lenient parsers interpret in different ways (RFC 9112):

- Lines end in CR LF; a CR or LF alone, NUL and other control characters are refused (section 2.2).
- The request line is `METHOD /origin-form HTTP/1.1`, at most 8 KiB; the head has at most 32 KiB and 100 fields (3,
  3.2.1).
- There is no folded line, no space before a colon (5.1, 5.2), and exactly one Host (3.2).
- The body's length is given once: by `Transfer-Encoding: chunked`, or by one plain Content-Length (6.1 to 6.3).
- There is no body on GET, HEAD and DELETE (RFC 9110, 9.3.1), no Upgrade, CONNECT, TRACE or HTTP/2 preface.

The registry's responses are parsed as strictly, but one that has both lengths is chunked (RFC 9112, section 6.3).
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from tunnelmgr.errors import GateError, MalformedRequestError, RegistryUnavailableError

MAX_HEAD: Final = 32 * 1024  # bytes
MAX_REQUEST_LINE: Final = 8 * 1024  # bytes
MAX_FIELDS: Final = 100
MAX_REMEMBERED: Final = 2048
"""Bytes of a head that is parsed once: the agents of a fleet send the same few requests, byte for byte."""

_ALLOWED: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.1")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_MEDIA_TYPE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REFUSED_METHODS: Final = frozenset({"CONNECT", "TRACE", "PRI"})
_METHODS_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE"})
_STATUSES_WITHOUT_BODY: Final = frozenset({204, 304})
_SWITCHING_PROTOCOLS: Final = 101

Field = tuple[bytes, bytes]
FieldsByName = dict[bytes, list[bytes]]


class Coding(StrEnum):
    """How the end of a body is found (RFC 9112, section 6.3)."""

    NONE = "none"
    COUNTED = "counted"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until-close"


@dataclass(frozen=True, slots=True)
class BodyFraming:
    """How a body is framed: its coding, and its length in bytes if it is counted."""

    coding: Coding
    length: int = 0


_NO_BODY: Final = BodyFraming(Coding.NONE)


@dataclass(frozen=True, slots=True, eq=False)
class RequestHead:
    """One request's head; field names are lower-case. Equal requests have one object, as far as it is remembered."""

    method: str
    target: str
    host: str
    fields: tuple[Field, ...]
    body: BodyFraming
    expects_continue: bool
    keep_alive: bool

    @property
    def ends_channel(self) -> bool:
        """Whether the channel ends if this request is refused: its body would be unread, or it asks to close."""
        return self.body.coding is not Coding.NONE or not self.keep_alive


@dataclass(frozen=True, slots=True, eq=False)
class ResponseHead:
    """One response's head; field names are lower-case. Equal responses have one object, as `RequestHead` has."""

    status: int
    reason: bytes
    fields: tuple[Field, ...]
    body: BodyFraming
    keep_alive: bool


class ParseBuffer:
    """Received bytes that are not parsed yet; a complete head can be taken from the front."""

    __slots__ = ("_bytes", "_error", "_scanned")

    def __init__(self, error: type[GateError]) -> None:
        self._bytes = bytearray()
        self._error = error
        self._scanned = 0

    def __len__(self) -> int:
        return len(self._bytes)

    def feed(self, data: bytes | memoryview) -> None:
        """Append received bytes."""
        self._bytes += data

    def take_head(self) -> bytes | None:
        """Remove and return one head with its empty line, or return None while it is incomplete.

        Raises the buffer's error at the first byte that is not allowed in a head, before the head is complete.
        """
        # Only new bytes are scanned, so a head that arrives byte by byte costs no more than one that arrives whole.
        end = self._bytes.find(b"\r\n\r\n", max(0, self._scanned - 3), MAX_HEAD)
        stop = MAX_HEAD if end < 0 else end + 4
        after_cr = self._bytes[self._scanned - 1 : self._scanned] == b"\r"
        if not _is_clean(self._bytes[self._scanned - after_cr : stop]):
            raise self._error("the head holds a bare CR or LF, or a control character")
        if end >= 0:
            head = bytes(self._bytes[:stop])
            del self._bytes[:stop]
            self._scanned = 0
            return head
        if len(self._bytes) >= MAX_HEAD:
            raise self._error(f"the head is longer than {MAX_HEAD} bytes")
        self._scanned = len(self._bytes)
        return None

    def take_all(self) -> bytes:
        """Remove and return everything."""
        rest = bytes(self._bytes)
        self._bytes.clear()
        self._scanned = 0
        return rest


def _is_clean(part: bytearray) -> bool:
    """Whether the only control characters are tabs and CR LF; a CR at the end may still get its LF."""
    controls = part.translate(None, _ALLOWED)
    if part.endswith(b"\r"):
        del controls[-1:]
    return controls == b"\r\n" * part.count(b"\r\n")


def parse_request_head(raw: bytes) -> RequestHead:
    """Parse one head from a `ParseBuffer`; raises MalformedRequestError by the rules above."""
    return _remembered_request(raw) if len(raw) <= MAX_REMEMBERED else _parse_request(raw)


def _parse_request(raw: bytes) -> RequestHead:
    request_line, *lines = raw[:-4].split(b"\r\n")
    method, target = _read_request_line(request_line)
    fields = _read_fields(lines, MalformedRequestError)
    by_name = _index_fields(fields)
    body = _request_body(by_name)
    if b"upgrade" in by_name:
        raise MalformedRequestError("Upgrade is not supported: the gate speaks HTTP/1.1 only")
    if method in _METHODS_WITHOUT_BODY and body.coding is not Coding.NONE:
        raise MalformedRequestError(f"a {method} request must not have a body")
    _check_content_type(by_name)
    return RequestHead(
        method=method,
        target=target,
        host=_read_host(by_name),
        fields=fields,
        body=body,
        expects_continue=_expects_continue(by_name),
        keep_alive=b"connection" not in by_name or b"close" not in connection_options(fields),
    )


def parse_response_head(method: str, raw: bytes) -> ResponseHead:
    """Parse the head of a response to `method`; raises RegistryUnavailableError if it is not valid HTTP/1.1."""
    return _remembered_response(method, raw) if len(raw) <= MAX_REMEMBERED else _parse_response(method, raw)


def _parse_response(method: str, raw: bytes) -> ResponseHead:
    status_line, *lines = raw[:-4].split(b"\r\n")
    matched = _STATUS_LINE.fullmatch(status_line)
    if matched is None:
        raise RegistryUnavailableError("the registry's response is not HTTP/1.1")
    status = int(matched[2])
    if status == _SWITCHING_PROTOCOLS:
        raise RegistryUnavailableError("the registry switches to another protocol without a request for it")
    fields = _read_fields(lines, RegistryUnavailableError)
    by_name = _index_fields(fields)
    body = _response_body(method, status, by_name)
    closing = b"connection" in by_name and b"close" in connection_options(fields)
    keep_alive = matched[1] == b"1" and not closing and body.coding is not Coding.UNTIL_CLOSE
    return ResponseHead(status, matched[3] or b"", fields, body, keep_alive)


_remembered_request: Final = lru_cache(maxsize=1024)(_parse_request)
_remembered_response: Final = lru_cache(maxsize=1024)(_parse_response)


def has_form_body(head: RequestHead) -> bool:
    """Whether a registry may read the body as a form, whose fields override the query (as Go's FormValue does)."""
    for value in (value for name, value in head.fields if name == b"content-type"):
        kind = value.partition(b";")[0].strip().lower()
        if kind == b"application/x-www-form-urlencoded" or kind.startswith(b"multipart/"):
            return True
    return False


def _read_request_line(line: bytes) -> tuple[str, str]:
    if len(line) > MAX_REQUEST_LINE:
        raise MalformedRequestError(f"the request line is longer than {MAX_REQUEST_LINE} bytes")
    matched = _REQUEST_LINE.fullmatch(line)
    if matched is None:
        raise MalformedRequestError("the request line is not `METHOD /path HTTP/1.1`")
    method = matched[1].decode("ascii")
    if method in _REFUSED_METHODS:
        raise MalformedRequestError(f"the method {method} is not supported")
    return method, matched[2].decode("ascii")


def _read_fields(lines: list[bytes], error: type[GateError]) -> tuple[Field, ...]:
    if len(lines) > MAX_FIELDS:
        raise error(f"the head has more than {MAX_FIELDS} fields")
    fields: list[Field] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise error("a header line is not of the form `Name: value`, or is folded")
        fields.append((name.lower(), value.strip(b" \t")))
    return tuple(fields)


def _index_fields(fields: tuple[Field, ...]) -> FieldsByName:
    by_name: FieldsByName = {}
    for name, value in fields:
        by_name.setdefault(name, []).append(value)
    return by_name


def _read_host(by_name: FieldsByName) -> str:
    match by_name.get(b"host"):
        case [value] if _HOST.fullmatch(value):
            return value.decode("ascii")
    raise MalformedRequestError(
        "the request must have exactly one Host field: a name or an address, with an optional port"
    )


def _request_body(by_name: FieldsByName) -> BodyFraming:
    match by_name.get(b"transfer-encoding"), by_name.get(b"content-length"):
        case None, None:
            return _NO_BODY
        case [coding], None if coding.lower() == b"chunked":
            return BodyFraming(Coding.CHUNKED)
        case None, [length] if LENGTH.fullmatch(length):
            return _counted(length)
    raise MalformedRequestError(
        "the body's length must be given once: by Content-Length, or by `Transfer-Encoding: chunked`"
    )


def _response_body(method: str, status: int, by_name: FieldsByName) -> BodyFraming:
    codings, lengths = by_name.get(b"transfer-encoding"), set(by_name.get(b"content-length", ()))
    if (codings and [coding.lower() for coding in codings] != [b"chunked"]) or len(lengths) > 1:
        raise RegistryUnavailableError("the registry's response gives its length in more than one way")
    if method == "HEAD" or status in _STATUSES_WITHOUT_BODY or status < 200:  # noqa: PLR2004 (RFC 9112, 6.3: 1xx, 204, 304)
        return _NO_BODY
    if codings:
        return BodyFraming(Coding.CHUNKED)
    match list(lengths):
        case []:
            return BodyFraming(Coding.UNTIL_CLOSE)
        case [length] if LENGTH.fullmatch(length):
            return _counted(length)
    raise RegistryUnavailableError("the Content-Length of the registry's response is not a number")


def _counted(length: bytes) -> BodyFraming:
    return BodyFraming(Coding.COUNTED, int(length)) if int(length) else _NO_BODY


def _check_content_type(by_name: FieldsByName) -> None:
    match by_name.get(b"content-type"):
        case None:
            return
        case [value] if _MEDIA_TYPE.fullmatch(value.partition(b";")[0].rstrip(b" \t")):
            return
    raise MalformedRequestError("the request may have one Content-Type field, of the form type/subtype")


def _expects_continue(by_name: FieldsByName) -> bool:
    match by_name.get(b"expect"):
        case None:
            return False
        case [value] if value.lower() == b"100-continue":
            return True
    raise MalformedRequestError("the only supported value of Expect is 100-continue")


def connection_options(fields: tuple[Field, ...]) -> frozenset[bytes]:
    """Return the options in the Connection field, in lower case (RFC 9110, section 7.6.1)."""
    return frozenset(
        option.strip(b" \t").lower() for name, value in fields if name == b"connection" for option in value.split(b",")
    )
