"""A registry that behaves as olareg does, not as docker-registry (github.com/olareg/olareg, `blob.go`).

olareg itself is in none of the packages that are installed here. The differences that matter:

- A location is a path without a host, with a parameter `state` that must match the bytes received so far.
- An upload continues with the state of the last response only.
- A push by digest may have tags (`?tag=…`), which the response lists in `OCI-Tag`.

Run as a program, it listens on 127.0.0.1: `python stateful_registry.py PORT`.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

_PLACE = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs/uploads|blobs|tags)/(?P<what>[^/]*)")


class StatefulRegistry(ThreadingHTTPServer):
    """A registry that keeps everything in memory."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.uploads: dict[str, bytes] = {}
        self.targets: list[str] = []


@contextmanager
def stateful_registry() -> Iterator[StatefulRegistry]:
    """Serve in a thread of this process."""
    with StatefulRegistry() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="stateful registry")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: StatefulRegistry
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Log nothing."""

    def _serve(self) -> None:  # noqa: PLR0911 (one for each endpoint)
        body = self._body()
        self.server.targets.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        self.asked = parse_qs(parts.query, keep_blank_values=True)
        if parts.path == "/v2/":
            return self._answer(HTTPStatus.OK)
        place = _PLACE.fullmatch(parts.path)
        if place is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN")
        match place["kind"]:
            case "blobs/uploads" if place["what"]:
                return self._upload(place["name"], place["what"], body)
            case "blobs/uploads":
                session = f"{len(self.server.uploads):08x}"
                self.server.uploads[session] = b""
                return self._go_on(HTTPStatus.ACCEPTED, place["name"], session)
            case "manifests":
                return self._manifest(place["name"], place["what"], body)
            case "tags":
                tags = sorted(tag for name, tag in self.server.tags if name == place["name"])
                return self._answer(HTTPStatus.OK, json.dumps({"name": place["name"], "tags": tags}).encode())
        return self._content(self.server.blobs.get((place["name"], place["what"])), "application/octet-stream")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 (the base class asks for them)

    def _upload(self, name: str, session: str, body: bytes) -> None:  # noqa: PLR0911 (one for each outcome)
        content = self.server.uploads.get(session)
        if content is None:
            return self._refuse(HTTPStatus.BAD_REQUEST, "BLOB_UPLOAD_UNKNOWN")
        if self.command == "GET":
            return self._go_on(HTTPStatus.NO_CONTENT, name, session)
        if self.command == "DELETE":
            del self.server.uploads[session]
            return self._answer(HTTPStatus.NO_CONTENT)
        if self.asked.get("state") != [_state(content)]:
            return self._refuse(HTTPStatus.BAD_REQUEST, "BLOB_UPLOAD_INVALID")
        start = self.headers["Content-Range"]
        if start is not None and int(start.partition("-")[0]) != len(content):
            return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "SIZE_INVALID")
        self.server.uploads[session] = content = content + body
        if self.command == "PATCH":
            return self._go_on(HTTPStatus.ACCEPTED, name, session)
        del self.server.uploads[session]
        digest = _digest(content)
        if self.asked.get("digest") != [digest]:
            return self._refuse(HTTPStatus.BAD_REQUEST, "BLOB_UPLOAD_INVALID")
        self.server.blobs[name, digest] = content
        return self._answer(HTTPStatus.CREATED, Location=f"/v2/{name}/blobs/{digest}")

    def _go_on(self, status: HTTPStatus, name: str, session: str) -> None:
        content = self.server.uploads[session]
        location = f"/v2/{name}/blobs/uploads/{session}?state={quote(_state(content))}"
        self._answer(status, Location=location, Range=f"0-{len(content) - 1}")

    def _manifest(self, name: str, reference: str, body: bytes) -> None:
        if self.command == "PUT":
            digest = _digest(body)
            tags = self.asked.get("tag", []) if ":" in reference else [reference]
            self.server.manifests[name, digest] = (self.headers["Content-Type"], body)
            self.server.tags |= {(name, tag): digest for tag in tags}
            tag_fields = {"OCI-Tag": ", ".join(tags)} if ":" in reference else {}
            location = f"/v2/{name}/manifests/{digest}"
            return self._answer(
                HTTPStatus.CREATED, Location=location, **{"Docker-Content-Digest": digest}, **tag_fields
            )
        digest = self.server.tags.get((name, reference), reference)
        kind, content = self.server.manifests.get((name, digest), ("", None))
        return self._content(content, kind, **{"Docker-Content-Digest": digest})

    def _content(self, content: bytes | None, kind: str, **headers: str) -> None:
        if content is None:
            return self._refuse(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN")
        return self._answer(HTTPStatus.OK, content, **{"Content-Type": kind}, **headers)

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        error = json.dumps({"errors": [{"code": code}]}).encode()
        self._answer(status, error, **{"Content-Type": "application/json"})

    def _answer(self, status: HTTPStatus, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] is None:
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _state(content: bytes) -> str:
    return base64.urlsafe_b64encode(json.dumps({"offset": len(content)}).encode()).decode().rstrip("=")


if __name__ == "__main__":
    StatefulRegistry(int(sys.argv[1])).serve_forever()
