"""What the gate says by itself: the message where every client looks, and nothing that breaks a status line."""

import json
from http import HTTPStatus

import pytest

from tunnelmgr.gate.local_reply import LocalReply, refusal


def test_a_refusal_says_why_in_its_status_line_and_in_its_body() -> None:
    """Docker prints the body's message; clients that look only at the status line print that."""
    wire = refusal(HTTPStatus.FORBIDDEN, "DENIED", "group ci may not push team/app", close=False).encode(
        without_body=False
    )

    head, _, body = wire.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 tunnelmgr: group ci may not push team/app\r\n")
    assert json.loads(body)["errors"][0]["message"] == "tunnelmgr: group ci may not push team/app"


def test_other_answers_have_the_usual_phrase() -> None:
    """An answer without a reason reads as everywhere."""
    assert LocalReply(HTTPStatus.OK, {}, close=False).encode(without_body=True).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("message", ["one\r\nSet-Cookie: two", "a\0b", "täglich", "tab\there"])
def test_a_message_cannot_break_the_status_line(message: str) -> None:
    """RFC 9112, section 4: what is no printable ASCII is replaced, whoever wrote it."""
    line, _, rest = (
        refusal(HTTPStatus.FORBIDDEN, "DENIED", message, close=True).encode(without_body=True).partition(b"\r\n")
    )

    assert line.startswith(b"HTTP/1.1 403 tunnelmgr: ")
    assert all(0x20 <= octet <= 0x7E for octet in line)
    assert b"?" in line
    assert b"Set-Cookie" not in rest


def test_a_status_line_has_a_bound() -> None:
    """A message as long as a request line may be is cut there, and whole in the body."""
    wire = refusal(HTTPStatus.FORBIDDEN, "DENIED", "x" * 8000, close=False).encode(without_body=False)

    line, _, rest = wire.partition(b"\r\n")
    assert len(line) < 600
    assert b"x" * 8000 in rest
