"""Replies of the gate itself: refusals in the OCI error format, pages of the catalog, and the caller's identity.

Refusals have the format of the OCI distribution spec, "Error Codes"; docker and skopeo print the message. Their status
is 403 and never 401, at which clients would try to log in. Clients that ignore the body of a refusal, such as
python-dxf, print the reason phrase, so it is the message too (RFC 9110, section 15.1, lets a server choose its own).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_PHRASE: Final = 500
"""Characters of a message in the status line; a name has at most 255 of them (OCI distribution spec, "Pulling")."""


@dataclass(frozen=True, slots=True)
class LocalReply:
    """One complete response that the gate makes itself.

    `close` announces that the gate closes the channel, `link` is the value of the Link field, and `reason`, if not
    empty, is the reason phrase of the status line. `retry_after` is in seconds, 0 for none.
    """

    status: HTTPStatus
    content: Mapping[str, object]
    close: bool
    link: str = ""
    reason: str = ""
    retry_after: int = 0

    def encode(self, *, without_body: bool) -> bytes:
        """Return the bytes to send; a response to HEAD has no body (RFC 9110, section 9.3.2)."""
        body = json.dumps(self.content).encode()
        head = (
            f"HTTP/1.1 {self.status.value} {_phrase(self.reason) or self.status.phrase}\r\n"
            "Content-Type: application/json\r\n"
            "Docker-Distribution-Api-Version: registry/2.0\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\n"
        )
        if self.link:
            head += f"Link: {self.link}\r\n"
        if self.retry_after:
            head += f"Retry-After: {self.retry_after}\r\n"
        if self.close:
            head += "Connection: close\r\n"
        return head.encode() + b"\r\n" + (b"" if without_body else body)


def refusal(status: HTTPStatus, code: str, message: str, *, close: bool, retry_after: int = 0) -> LocalReply:
    """Return a refusal with one of the spec's error codes; `message` is for the user of the client."""
    text = message if message.startswith("tunnelmgr: ") else f"tunnelmgr: {message}"
    errors = {"errors": [{"code": code, "message": text}]}
    return LocalReply(status, errors, close, reason=text, retry_after=retry_after)


def _phrase(reason: str) -> str:
    """Return `reason` in the form of a reason phrase: printable ASCII on one line (RFC 9112, section 4)."""
    return "".join(char if " " <= char <= "~" else "?" for char in reason[:_MAX_PHRASE])
