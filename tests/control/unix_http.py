"""HTTP over a unix socket, independent of the product's client."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any


class OnSocket(http.client.HTTPConnection):
    """HTTP over a unix socket, independent of the product's client."""

    def __init__(self, place: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.place = place

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self.place))


def request(place: Path, method: str, target: str, body: bytes | None = None) -> tuple[int, Any]:
    """Send one request, and return the answer's status and JSON."""
    connection = OnSocket(place)
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
