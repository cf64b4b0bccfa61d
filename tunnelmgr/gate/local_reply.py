"""What the gate answers by itself: refusals in the OCI error format, and who the caller is.

The format is that of the OCI distribution spec, "Error Codes"; docker and skopeo print its message. A 403 and never a
401: with a 401 they would try to log in. Clients that never look at a refusal's body, such as python-dxf, print the
reason phrase, so the message stands there too (RFC 9110, section 15.1, lets a server choose its own).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LONGEST_PHRASE: Final = 500
"""Characters of a message in the status line; a name has at most 255 of them (OCI distribution spec, "Pulling")."""


@dataclass(frozen=True, slots=True)
class LocalReply:
    """One complete answer.

    `close` says that no request follows on this channel, `link` is the Link field's value, and `reason` stands in the
    status line where it is not empty.
    """

    status: HTTPStatus
    content: Mapping[str, object]
    close: bool
    link: str = ""
    reason: str = ""

    def encode(self, *, without_body: bool) -> bytes:
        """Write it; for HEAD, the head alone (RFC 9110, section 9.3.2)."""
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
        if self.close:
            head += "Connection: close\r\n"
        return head.encode() + b"\r\n" + (b"" if without_body else body)


def refusal(status: HTTPStatus, code: str, message: str, *, close: bool) -> LocalReply:
    """Return a refusal with one of the spec's error codes; `message` is for the person at the agent."""
    told = message if message.startswith("tunnelmgr: ") else f"tunnelmgr: {message}"
    return LocalReply(status, {"errors": [{"code": code, "message": told}]}, close, reason=told)


def _phrase(reason: str) -> str:
    """Return `reason` as the status line may have it: printable ASCII on one line (RFC 9112, section 4)."""
    return "".join(char if " " <= char <= "~" else "?" for char in reason[:_LONGEST_PHRASE])
