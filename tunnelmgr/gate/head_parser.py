"""The head of one message: bytes in, `RequestHead` or `ResponseHead` out, no I/O.

There is one strict parse, and these rules are what it refuses that lenient readers take in two ways (RFC 9112):

- Lines end in CR LF; a CR or LF alone, NUL and other controls are refused (section 2.2).
- The request line is `METHOD /origin-form HTTP/1.1`, at most 8 KiB; the head at most 32 KiB and 100 fields (3, 3.2.1).
- No folded line, no space before a colon (5.1, 5.2); exactly one Host (3.2).
- One way to tell the body's length: a single `Transfer-Encoding: chunked`, or one plain Content-Length (6.1 to 6.3).
- No body on GET, HEAD and DELETE (RFC 9110, 9.3.1), no Upgrade, CONNECT, TRACE or HTTP/2 preface.

The registry's answers are read as strictly, but for what RFC 9112, section 6.3 says of two lengths in an answer.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tunnelmgr.errors import GateError, MalformedRequestError, RegistryUnavailableError

MAX_HEAD: Final = 32 * 1024
MAX_REQUEST_LINE: Final = 8 * 1024
MAX_FIELDS: Final = 100

_PLAIN: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.1")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_MEDIA_TYPE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NEVER: Final = frozenset({"CONNECT", "TRACE", "PRI"})
_BODILESS: Final = frozenset({"GET", "HEAD", "DELETE"})
_NO_CONTENT: Final = frozenset({204, 304})
_SWITCHING: Final = 101

Field = tuple[bytes, bytes]
Named = dict[bytes, list[bytes]]


class Coding(StrEnum):
    """How the end of a body is found (RFC 9112, section 6.3)."""

    NONE = "none"
    COUNTED = "counted"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until-close"


@dataclass(frozen=True, slots=True)
class BodyFraming:
    """A body's coding, and for a counted one its length in bytes."""

    coding: Coding
    length: int = 0


_NO_BODY: Final = BodyFraming(Coding.NONE)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One request's head; field names are lower-case."""

    method: str
    target: str
    host: str
    fields: tuple[Field, ...]
    body: BodyFraming
    expects_continue: bool
    keep_alive: bool

    @property
    def ends_channel(self) -> bool:
        """Whether no request can follow one that is refused: its body would have to be read first."""
        return self.body.coding is not Coding.NONE or not self.keep_alive


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """One response's head; field names are lower-case."""

    status: int
    reason: bytes
    fields: tuple[Field, ...]
    body: BodyFraming
    keep_alive: bool


class ReceiveBuffer:
    """Bytes that arrived and were not read yet; a whole head can be taken off the front."""

    __slots__ = ("_bytes", "_error", "_scanned")

    def __init__(self, error: type[GateError]) -> None:
        self._bytes = bytearray()
        self._error = error
        self._scanned = 0

    def __bool__(self) -> bool:
        return bool(self._bytes)

    def feed(self, data: bytes | memoryview) -> None:
        """Append what arrived."""
        self._bytes += data

    def take_head(self) -> bytes | None:
        """Remove and return one head with its empty line, or None while it is not whole.

        Raises the buffer's error at the first byte that no head may hold, without waiting for the rest.
        """
        # Only new bytes are scanned, so that a head sent byte by byte costs no more than one sent whole.
        end = self._bytes.find(b"\r\n\r\n", max(0, self._scanned - 3), MAX_HEAD)
        stop = MAX_HEAD if end < 0 else end + 4
        halved = self._bytes[self._scanned - 1 : self._scanned] == b"\r"
        if not _is_clean(self._bytes[self._scanned - halved : stop]):
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
    """Whether a part of a head has no control but tabs and whole CR LF, or ends in a CR that waits for its LF."""
    controls = part.translate(None, _PLAIN)
    if part.endswith(b"\r"):
        del controls[-1:]
    return controls == b"\r\n" * part.count(b"\r\n")


def parse_request_head(raw: bytes) -> RequestHead:
    """Parse one head as `ReceiveBuffer` gave it; raises MalformedRequestError by the rules above."""
    request_line, *lines = raw[:-4].split(b"\r\n")
    method, target = _read_request_line(request_line)
    fields = _read_fields(lines, MalformedRequestError)
    named = _by_name(fields)
    body = _request_body(named)
    if b"upgrade" in named:
        raise MalformedRequestError("this gate speaks HTTP/1.1 only, without Upgrade")
    if method in _BODILESS and body.coding is not Coding.NONE:
        raise MalformedRequestError(f"{method} has no body")
    _check_content_type(named)
    return RequestHead(
        method=method,
        target=target,
        host=_read_host(named),
        fields=fields,
        body=body,
        expects_continue=_expects_continue(named),
        keep_alive=b"connection" not in named or b"close" not in connection_options(fields),
    )


def parse_response_head(method: str, raw: bytes) -> ResponseHead:
    """Parse the head that answers `method`; raises RegistryUnavailableError when it is not HTTP/1.1."""
    status_line, *lines = raw[:-4].split(b"\r\n")
    matched = _STATUS_LINE.fullmatch(status_line)
    if matched is None:
        raise RegistryUnavailableError("the registry's answer is no HTTP/1.1")
    status = int(matched[2])
    if status == _SWITCHING:
        raise RegistryUnavailableError("the registry switches to a protocol that nobody asked for")
    fields = _read_fields(lines, RegistryUnavailableError)
    named = _by_name(fields)
    body = _response_body(method, status, named)
    closing = b"connection" in named and b"close" in connection_options(fields)
    keep_alive = matched[1] == b"1" and not closing and body.coding is not Coding.UNTIL_CLOSE
    return ResponseHead(status, matched[3] or b"", fields, body, keep_alive)


def has_form_body(head: RequestHead) -> bool:
    """Whether a registry may take the body for a form, whose fields override the query (trap of Go's FormValue)."""
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
    if method in _NEVER:
        raise MalformedRequestError(f"{method} is not for this gate")
    return method, matched[2].decode("ascii")


def _read_fields(lines: list[bytes], error: type[GateError]) -> tuple[Field, ...]:
    if len(lines) > MAX_FIELDS:
        raise error(f"the head has more than {MAX_FIELDS} fields")
    fields: list[Field] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise error("a header field is folded, or is not `Name: value`")
        fields.append((name.lower(), value.strip(b" \t")))
    return tuple(fields)


def _by_name(fields: tuple[Field, ...]) -> Named:
    named: Named = {}
    for name, value in fields:
        named.setdefault(name, []).append(value)
    return named


def _read_host(named: Named) -> str:
    match named.get(b"host"):
        case [value] if _HOST.fullmatch(value):
            return value.decode("ascii")
    raise MalformedRequestError("there must be exactly one Host, a name or address with an optional port")


def _request_body(named: Named) -> BodyFraming:
    match named.get(b"transfer-encoding"), named.get(b"content-length"):
        case None, None:
            return _NO_BODY
        case [coding], None if coding.lower() == b"chunked":
            return BodyFraming(Coding.CHUNKED)
        case None, [length] if _LENGTH.fullmatch(length):
            return _counted(length)
    raise MalformedRequestError("the body's length must be told once, by Content-Length or by `chunked`")


def _response_body(method: str, status: int, named: Named) -> BodyFraming:
    codings, lengths = named.get(b"transfer-encoding"), set(named.get(b"content-length", ()))
    if (codings and [coding.lower() for coding in codings] != [b"chunked"]) or len(lengths) > 1:
        raise RegistryUnavailableError("the registry's answer does not say in one way where it ends")
    if method == "HEAD" or status in _NO_CONTENT or status < 200:  # noqa: PLR2004 (RFC 9112, 6.3: 1xx, 204, 304)
        return _NO_BODY
    if codings:
        return BodyFraming(Coding.CHUNKED)
    match list(lengths):
        case []:
            return BodyFraming(Coding.UNTIL_CLOSE)
        case [length] if _LENGTH.fullmatch(length):
            return _counted(length)
    raise RegistryUnavailableError("the length of the registry's answer is no number")


def _counted(length: bytes) -> BodyFraming:
    return BodyFraming(Coding.COUNTED, int(length)) if int(length) else _NO_BODY


def _check_content_type(named: Named) -> None:
    match named.get(b"content-type"):
        case None:
            return
        case [value] if _MEDIA_TYPE.fullmatch(value.partition(b";")[0].rstrip(b" \t")):
            return
    raise MalformedRequestError("there may be one Content-Type, of the form type/subtype")


def _expects_continue(named: Named) -> bool:
    match named.get(b"expect"):
        case None:
            return False
        case [value] if value.lower() == b"100-continue":
            return True
    raise MalformedRequestError("the only expectation met here is 100-continue")


def connection_options(fields: tuple[Field, ...]) -> frozenset[bytes]:
    """Everything that Connection names, in lower case (RFC 9110, section 7.6.1)."""
    return frozenset(
        option.strip(b" \t").lower() for name, value in fields if name == b"connection" for option in value.split(b",")
    )
