"""Replies of the gate: the message is where every client shows it, and nothing breaks the status line."""

import json
from http import HTTPStatus

import pytest

from tunnelmgr.gate.local_reply import LocalReply, refusal


def test_a_refusal_has_its_message_in_the_status_line_and_in_the_body() -> None:
    """A refusal has its message in the body, which docker prints, and in the status line, which others print."""
    wire = refusal(HTTPStatus.FORBIDDEN, "DENIED", "group ci may not push team/app", close=False).encode(
        without_body=False
    )

    head, _, body = wire.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 tunnelmgr: group ci may not push team/app\r\n")
    assert json.loads(body)["errors"][0]["message"] == "tunnelmgr: group ci may not push team/app"


def test_other_replies_have_the_standard_phrase() -> None:
    """A reply without a reason has the standard phrase of its status."""
    assert LocalReply(HTTPStatus.OK, {}, close=False).encode(without_body=True).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("message", ["one\r\nSet-Cookie: two", "a\0b", "täglich", "tab\there"])
def test_a_message_cannot_break_the_status_line(message: str) -> None:
    """Each character of a message that is not printable ASCII becomes `?` in the status line (RFC 9112, section 4)."""
    line, _, rest = (
        refusal(HTTPStatus.FORBIDDEN, "DENIED", message, close=True).encode(without_body=True).partition(b"\r\n")
    )

    assert line.startswith(b"HTTP/1.1 403 tunnelmgr: ")
    assert all(0x20 <= octet <= 0x7E for octet in line)
    assert b"?" in line
    assert b"Set-Cookie" not in rest


def test_a_long_message_is_truncated_in_the_status_line() -> None:
    """A long message is truncated in the status line and complete in the body."""
    wire = refusal(HTTPStatus.FORBIDDEN, "DENIED", "x" * 8000, close=False).encode(without_body=False)

    line, _, rest = wire.partition(b"\r\n")
    assert len(line) < 600
    assert b"x" * 8000 in rest
