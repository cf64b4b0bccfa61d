"""An instance metadata service that gives the credential of the instance's role: `python -m lab.s3.instance_metadata`.

It takes the credential from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, and answers version 2 of the protocol
only, as new instances do: AWS, "Retrieve security credentials from instance metadata".
"""

from __future__ import annotations

import http.server
import json
import os
from http import HTTPStatus

ADDRESS = "169.254.169.254"
_TOKEN = "token-of-the-lab"  # noqa: S105 - clients ask for it without a credential
_ROLES = "/latest/meta-data/iam/security-credentials/"
_ROLE = "registry"


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        """Answer the request for a token."""
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        if self.path == "/latest/api/token" and lifetime:
            self._send(HTTPStatus.OK, _TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": lifetime})
        else:
            self._send(HTTPStatus.BAD_REQUEST)

    def do_GET(self) -> None:
        """Answer with the name of the role, or with its credential."""
        if self.headers.get("X-aws-ec2-metadata-token") != _TOKEN:
            self._send(HTTPStatus.UNAUTHORIZED)
        elif self.path == _ROLES:
            self._send(HTTPStatus.OK, _ROLE)
        elif self.path == _ROLES + _ROLE:
            self._send(HTTPStatus.OK, json.dumps(_credential()))
        else:
            self._send(HTTPStatus.NOT_FOUND)

    def _send(self, status: HTTPStatus, text: str = "", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


def _credential() -> dict[str, str]:
    return {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": os.environ["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": os.environ["AWS_SECRET_ACCESS_KEY"],
        "Token": "",
        "Expiration": "2100-01-01T00:00:00Z",
    }


if __name__ == "__main__":
    http.server.ThreadingHTTPServer((ADDRESS, 80), _Answer).serve_forever()
