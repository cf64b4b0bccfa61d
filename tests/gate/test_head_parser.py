"""Heads are parsed to the same result however the bytes are cut."""

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.errors import GateError, MalformedRequestError, RegistryUnavailableError
from tunnelmgr.gate.head_parser import (
    MAX_HEAD,
    BodyFraming,
    Coding,
    ParseBuffer,
    RequestHead,
    has_form_body,
    parse_request_head,
    parse_response_head,
)


def head_of(*lines: str, method: str = "GET", target: str = "/v2/") -> bytes:
    """Return a head with a valid request line and Host."""
    return "\r\n".join((f"{method} {target} HTTP/1.1", "Host: localhost:5000", *lines, "", "")).encode("latin-1")


def parse(raw: bytes) -> RequestHead:
    """Parse one complete head."""
    inbox = ParseBuffer(MalformedRequestError)
    inbox.feed(raw)
    taken = inbox.take_head()
    assert taken is not None
    return parse_request_head(taken)


def test_a_plain_head_is_parsed() -> None:
    """A plain head is parsed: field names become lower-case, values stay unchanged."""
    head = parse(head_of("Accept: a/b", "User-Agent: docker/24"))

    assert (head.method, head.target, head.host) == ("GET", "/v2/", "localhost:5000")
    assert (b"accept", b"a/b") in head.fields
    assert head.body == BodyFraming(Coding.NONE)
    assert head.keep_alive
    assert not head.expects_continue


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ((), BodyFraming(Coding.NONE)),
        (("Content-Length: 0",), BodyFraming(Coding.NONE)),
        (("Content-Length: 17",), BodyFraming(Coding.COUNTED, 17)),
        (("Transfer-Encoding: Chunked",), BodyFraming(Coding.CHUNKED)),
    ],
)
def test_the_framing_of_a_request_body_is_parsed(lines: tuple[str, ...], body: BodyFraming) -> None:
    """A request's body is framed by its Content-Length or by chunks (RFC 9112, section 6.3)."""
    assert parse(head_of(*lines, method="PUT")).body == body


def test_close_and_continue_are_parsed() -> None:
    """`Connection: close` and `Expect: 100-continue` are parsed, in any case of letters."""
    head = parse(head_of("Connection: x, Close", "Expect: 100-Continue", "Content-Length: 1", method="PUT"))

    assert not head.keep_alive
    assert head.expects_continue


MALFORMED = {
    "bare LF after the request line": b"GET /v2/ HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF throughout": b"GET /v2/ HTTP/1.1\nHost: a\n\n",
    "bare CR": b"GET /v2/ HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "NUL": b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
    "vertical tab": b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: \x0b\r\n\r\n",
    "folded field": b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "field folded by a tab": b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n",
    "space before the colon": b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n",
    "space before the first field": b"GET /v2/ HTTP/1.1\r\n Host: a\r\n\r\n",
    "no colon": b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "empty name": b"GET /v2/ HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
    "HTTP/1.0": b"GET /v2/ HTTP/1.0\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /v2/\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "PRI of HTTP/1.1": b"PRI / HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute-form": b"GET http://a/v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority-form": b"CONNECT a:5000 HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "TRACE": b"TRACE /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk-form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "two spaces": b"GET  /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab for a space": b"GET\t/v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower-case method": b"get /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "trailing space": b"GET /v2/ HTTP/1.1 \r\nHost: a\r\n\r\n",
    "empty line first": b"\r\nGET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "no Host": b"GET /v2/ HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "Host with a path": b"GET /v2/ HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with a user": b"GET /v2/ HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "empty Host": b"GET /v2/ HTTP/1.1\r\nHost:\r\n\r\n",
    "TE and CL": head_of("Transfer-Encoding: chunked", "Content-Length: 3", method="PUT"),
    "CL and TE": head_of("Content-Length: 3", "Transfer-Encoding: chunked", method="PUT"),
    "TE gzip": head_of("Transfer-Encoding: gzip, chunked", method="PUT"),
    "TE chunked twice": head_of("Transfer-Encoding: chunked, chunked", method="PUT"),
    "two TE": head_of("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", method="PUT"),
    "TE identity": head_of("Transfer-Encoding: identity", method="PUT"),
    "two CL": head_of("Content-Length: 3", "Content-Length: 3", method="PUT"),
    "two different CL": head_of("Content-Length: 3", "Content-Length: 4", method="PUT"),
    "CL list": head_of("Content-Length: 3, 3", method="PUT"),
    "CL with a sign": head_of("Content-Length: +3", method="PUT"),
    "CL in hex": head_of("Content-Length: 0x3", method="PUT"),
    "CL negative": head_of("Content-Length: -3", method="PUT"),
    "CL too long": head_of("Content-Length: " + "1" * 19, method="PUT"),
    "CL empty": head_of("Content-Length:", method="PUT"),
    "GET with a body": head_of("Content-Length: 3"),
    "HEAD with a body": head_of("Transfer-Encoding: chunked", method="HEAD"),
    "DELETE with a body": head_of("Content-Length: 3", method="DELETE"),
    "Upgrade": head_of("Connection: Upgrade", "Upgrade: h2c"),
    "Expect of something else": head_of("Expect: 200-ok", "Content-Length: 1", method="PUT"),
    "two expectations": head_of("Expect: 100-continue", "Expect: 100-continue", "Content-Length: 1", method="PUT"),
    "two content types": head_of("Content-Type: a/b", "Content-Type: c/d", "Content-Length: 1", method="PUT"),
    "odd content type": head_of("Content-Type: form, x", "Content-Length: 1", method="PUT"),
    "101 fields": head_of(*("X: y",) * 100),
    "long request line": head_of(target="/v2/" + "a" * 8192),
    "long head": head_of("X: " + "a" * MAX_HEAD),
    "endless head": b"GET /v2/ HTTP/1.1\r\nX: " + b"a" * MAX_HEAD,
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_head_that_lenient_parsers_read_in_different_ways_is_refused(raw: bytes) -> None:
    """An ambiguous head (RFC 9112) is refused at the first byte that shows it, not after a timeout."""
    with pytest.raises(MalformedRequestError):
        parse(raw)


def test_a_head_at_its_limits_is_accepted() -> None:
    """A head with exactly 100 fields and a request line of exactly 8 KiB is accepted."""
    target = "/v2/" + "a" * (8192 - len("GET /v2/ HTTP/1.1"))

    head = parse(head_of(*("X: y",) * 99, target=target))

    assert len(head.fields) == 100
    assert head.target == target


def test_an_incomplete_head_is_not_an_error() -> None:
    """An incomplete head, also one that ends in a CR, is not an error."""
    inbox = ParseBuffer(MalformedRequestError)
    whole = head_of()

    for byte in whole[:-1]:
        inbox.feed(bytes([byte]))
        assert inbox.take_head() is None
    inbox.feed(whole[-1:])

    assert inbox.take_head() == whole
    assert not inbox


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("application/x-www-form-urlencoded", True),
        ("Application/X-WWW-Form-URLencoded ; charset=utf-8", True),
        ("multipart/form-data; boundary=x", True),
        ("MULTIPART/mixed", True),
        ("application/octet-stream", False),
        ("application/vnd.oci.image.manifest.v1+json", False),
    ],
)
def test_form_bodies_are_recognized_by_their_type(kind: str, form: bool) -> None:
    """A body with a form's media type is recognized, since a registry lets its fields override the query."""
    assert has_form_body(parse(head_of(f"Content-Type: {kind}", "Content-Length: 1", method="POST"))) is form


def test_a_body_without_a_type_is_not_a_form() -> None:
    """A body without a Content-Type is not a form."""
    assert not has_form_body(parse(head_of("Content-Length: 1", method="POST")))


@pytest.mark.parametrize(
    ("method", "head", "body"),
    [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5", BodyFraming(Coding.COUNTED, 5)),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0", BodyFraming(Coding.NONE)),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", BodyFraming(Coding.CHUNKED)),
        ("GET", "HTTP/1.1 200 OK\r\nX: y", BodyFraming(Coding.UNTIL_CLOSE)),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5", BodyFraming(Coding.NONE)),
        ("PUT", "HTTP/1.1 204 No Content\r\nX: y", BodyFraming(Coding.NONE)),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5", BodyFraming(Coding.NONE)),
        ("GET", "HTTP/1.1 103 Early Hints\r\nX: y", BodyFraming(Coding.NONE)),
    ],
)
def test_the_framing_of_a_response_body_is_parsed(method: str, head: str, body: BodyFraming) -> None:
    """The framing of a response's body follows RFC 9112, section 6.3."""
    assert parse_response_head(method, head.encode() + b"\r\n\r\n").body == body


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", True),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close", False),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5", False),
        ("HTTP/1.1 200 OK\r\nX: y", False),
    ],
)
def test_the_registrys_connection_is_kept_only_after_a_framed_response(head: str, kept: bool) -> None:
    """The registry's connection is kept if the response allows it and has an end (RFC 9112, section 9.3)."""
    assert parse_response_head("GET", head.encode() + b"\r\n\r\n").keep_alive is kept


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n",
        b"HTTP/2 200\r\n\r\n",
    ],
)
def test_an_invalid_response_head_is_an_error_of_the_registry(raw: bytes) -> None:
    """An invalid response head raises RegistryUnavailableError, so the agent gets 503, not 400."""
    with pytest.raises(RegistryUnavailableError):
        parse_response_head("GET", raw)


_TOKENS = [*("GET ", "PUT ", "/v2/ ", "HTTP/1.1", "\r\n", "Host", "Content-Length", "Transfer-Encoding", "chunked")]
_TOKENS += [*(":", " ", "\t", "a", "3", "Connection", "close", "Expect: 100-continue", "\xff", "@", ",", "Host: a\r\n")]


@settings(deadline=None)  # a busy machine is not a failure
@given(st.lists(st.sampled_from(_TOKENS), max_size=14).map("".join), st.sampled_from(["GET", "PUT"]))
def test_h11_reads_an_accepted_head_the_same(text: str, method: str) -> None:
    """`h11` accepts every head that the parser accepts, with the same fields."""
    raw = f"{method} /v2/ HTTP/1.1\r\n{text}\r\nHost: a\r\n\r\n".encode("latin-1")
    try:
        head = parse(raw)
    except MalformedRequestError:
        return

    peer = h11.Connection(h11.SERVER)
    peer.receive_data(raw)
    event = peer.next_event()

    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (head.method.encode(), head.target.encode())
    assert tuple(event.headers) == tuple(
        (name, value.lower() if name == b"transfer-encoding" else value) for name, value in head.fields
    )


_STREAMS = st.one_of(
    st.sampled_from(list(MALFORMED.values())),
    st.binary(max_size=60),
    st.lists(
        st.sampled_from([b"GET ", b"/v2/", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b"Host: a", b"X: y", b" ", b"\x00"]),
        max_size=14,
    ).map(b"".join),
)


def heads_in(pieces: list[bytes]) -> tuple[list[RequestHead], bool]:
    """Return every head in the stream, and whether it ended in an error."""
    inbox = ParseBuffer(MalformedRequestError)
    heads: list[RequestHead] = []
    try:
        for piece in pieces:
            inbox.feed(piece)
            while (raw := inbox.take_head()) is not None:
                heads.append(parse_request_head(raw))
    except GateError:
        return heads, True
    return heads, False


@settings(deadline=None)  # a busy machine is not a failure
@given(st.lists(st.one_of(st.just(head_of()), _STREAMS), max_size=3).map(b"".join), st.data())
def test_heads_read_the_same_however_the_bytes_are_cut(stream: bytes, data: st.DataObject) -> None:
    """However a stream is split, it has the same heads, an error at the same place, and no other exceptions."""
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    edges = [0, *sorted(cuts), len(stream)]

    cut = heads_in([stream[start:stop] for start, stop in itertools.pairwise(edges)])

    assert cut == heads_in([stream])
