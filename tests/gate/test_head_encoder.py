"""Heads are written from parsed parts, with the fields that the gate forwards."""

import pytest

from tests.gate.test_head_parser import head_of, parse
from tunnelmgr.core.oci import classify
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.head_encoder import encode_request_head, encode_response_head
from tunnelmgr.gate.head_parser import (
    parse_response_head,
)

TARGET = Endpoint("127.0.0.1", 5001)


def test_only_listed_fields_reach_the_registry() -> None:
    """No field that authenticates, forwards, overrides or belongs to the hop reaches the registry."""
    lines = (
        *("Accept: a/b", "Accept: c/d", "Range: bytes=0-1", "If-None-Match: x", "User-Agent: u", "OCI-Subject: s"),
        *("Authorization: Basic x", "Cookie: c", "Forwarded: for=x", "X-Forwarded-Host: evil", "X-Forwarded-For: x"),
        *("X-HTTP-Method-Override: PUT", "Connection: range, close", "Keep-Alive: 1", "TE: trailers", "X-Real-IP: x"),
    )
    head = parse(head_of(*lines, target="/v2/a/manifests/v1"))

    wire = encode_request_head(head, classify(head.method, head.target))

    assert wire.decode().split("\r\n") == [
        "GET /v2/a/manifests/v1 HTTP/1.1",
        "Host: localhost:5000",
        "accept: a/b",
        "accept: c/d",
        "if-none-match: x",
        "user-agent: u",
        "oci-subject: s",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("target", "lines", "expected"),
    [
        ("/v2/a/manifests/v1", ("Content-Type: x/y", "Content-Length: 3"), {"Content-Type: x/y", "Content-Length: 3"}),
        ("/v2/a/manifests/v1", ("Content-Length: 3",), {"Content-Type: application/octet-stream", "Content-Length: 3"}),
        (
            "/v2/a/blobs/uploads/1",
            ("Content-Type: x/y", "Transfer-Encoding: chunked"),
            {"Content-Type: application/octet-stream", "Transfer-Encoding: chunked"},
        ),
        ("/v2/a/blobs/uploads/1", ("Content-Type: x/y",), {"Content-Length: 0"}),
    ],
)
def test_the_gate_writes_the_framing_of_a_request_body(target: str, lines: tuple[str, ...], expected: set[str]) -> None:
    """The registry gets the parsed length of a body, and its type only for a manifest."""
    head = parse(head_of(*lines, method="PUT", target=target))

    wire = encode_request_head(head, classify(head.method, head.target)).decode()

    assert {line for line in wire.split("\r\n") if line.startswith(("Content-", "Transfer-", "content-"))} == expected


def answer(*lines: str, location: str | None = None, close: bool = False) -> list[str]:
    """Return the lines that the agent sees of a registry's answer."""
    raw = "\r\n".join(("HTTP/1.1 202 Accepted", *lines, "", "")).encode()
    head = parse_response_head("POST", raw)
    written = encode_response_head(head, location=location, host="localhost:5000", target=TARGET, close=close)
    return written.decode().split("\r\n")[1:-2]


def test_the_given_location_replaces_the_registrys() -> None:
    """The agent gets the given Location and never the registry's own, and links that lead back to the registry."""
    assert answer("Location: /v2/a", "Link: </v2/x>", "Link: <http://evil/>") == [
        "Link: </v2/x>",
        "Transfer-Encoding: chunked",
    ]
    assert answer("Location: /v2/a", "Content-Length: 0", location="/v2/b") == ["Location: /v2/b", "Content-Length: 0"]


def test_hop_by_hop_fields_are_not_forwarded() -> None:
    """Hop-by-hop fields are not forwarded (RFC 9110, section 7.6.1), all others are."""
    lines = answer("Content-Length: 0", "Connection: x-hop", "X-Hop: 1", "Keep-Alive: 1", "Etag: e", close=True)

    assert lines == ["Content-Length: 0", "Etag: e", "Connection: close"]


@pytest.mark.parametrize("lines", [("Transfer-Encoding: chunked", "Content-Length: 3"), ("X: y",)])
def test_a_body_of_unknown_length_is_chunked_to_the_agent(lines: tuple[str, ...]) -> None:
    """A response body of unknown length is chunked to the agent, which can thus notice an incomplete one."""
    sent = answer(*lines)

    assert "Transfer-Encoding: chunked" in sent
    assert not any(line.startswith("Content-Length") for line in sent)
