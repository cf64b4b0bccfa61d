"""The stand-in for Hetzner's API: listing in pages, the rate limit, faults, and the commands under `/_lab/`.

docs.hetzner.cloud: "Authentication", "Errors", "Pagination", "Rate Limiting".
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from lab.cloud_service import COMMANDS, run_command
from lab.faults.api import Fault, Faults
from lab.hetzner.fleet import Fleet, Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TOKEN = "lab" * 21 + "x"  # as long as a real one  # pragma: allowlist secret
_SERVERS = "/v1/servers"
_CODES = {
    400: "invalid_input",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    429: "rate_limit_exceeded",
    503: "unavailable",
}
_HOUR = 3600.0


@dataclass(frozen=True)
class HetznerFault(Fault):
    """A failure of one call: any status, with JSON or not, or a connection that breaks."""

    status: int = 0  # 0: as without the fault
    cut: float | None = None  # fraction of the answer after which the connection breaks; 0: no answer


@dataclass(frozen=True)
class Answer:
    """The API's answer; `share` is the fraction that is sent before the connection breaks."""

    status: int
    body: bytes
    kind: str = "application/json"
    share: float | None = None


class RateLimit:
    """The requests that a project has left; they are restored evenly, all within an hour."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.set(3600, 3600)

    def set(self, remaining: float, limit: int = 3600) -> None:
        """Set the remaining requests and the limit."""
        with self._lock:
            self._limit, self._remaining, self._at = limit, float(remaining), time.monotonic()

    def take(self) -> bool:
        """Take one request, if one is left."""
        with self._lock:
            now = time.monotonic()
            self._remaining = min(self._limit, self._remaining + (now - self._at) * self._limit / _HOUR)
            self._at = now
            if self._remaining < 1:
                return False
            self._remaining -= 1
            return True

    def headers(self) -> Mapping[str, str]:
        """Return the rate limit's headers."""
        with self._lock:
            whole_in = (self._limit - self._remaining) * _HOUR / self._limit
            return {
                "RateLimit-Limit": str(self._limit),
                "RateLimit-Remaining": str(int(self._remaining)),
                "RateLimit-Reset": str(math.ceil(time.time() + whole_in)),
            }


class HetznerApi:
    """The API of one project."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.limit = RateLimit()
        self.faults = Faults()
        self.requests: list[str] = []
        self.before_page: Callable[[int], None] | None = None
        self.commands: Mapping[str, Callable[..., object]] = {
            "health": lambda: True,
            "launch": self.fleet.launch,
            "delete": self.fleet.delete,
            "state": self.fleet.state,
            "relabel": self.fleet.relabel,
            "budget": self.limit.set,
            "fault": lambda call, faults: self.faults.add(call, [HetznerFault(**fault) for fault in faults]),
            "clear-faults": self.faults.clear,
            "requests": lambda: list(self.requests),
        }

    def answer(self, target: str, authorization: str | None) -> Answer:
        """Answer one GET."""
        self.requests.append(f"GET {target}")
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        call = "list" if parts.path == _SERVERS else "get"
        fault = self.faults.take(call, first_page=query.get("page", ["1"]) == ["1"])
        had = self.limit.take()
        if fault and fault.status:
            answer = _error(fault.status, fault.code)
        elif authorization != f"Bearer {TOKEN}":
            answer = _error(HTTPStatus.UNAUTHORIZED)
        elif not had:
            answer = _error(HTTPStatus.TOO_MANY_REQUESTS)
        else:
            answer = (
                self._listed(query, empty=fault is not None and fault.empty)
                if call == "list"
                else self._one(parts.path)
            )
        share = fault.cut if isinstance(fault, HetznerFault) else None
        return Answer(answer.status, answer.body, answer.kind, share)

    def _listed(self, query: Mapping[str, list[str]], *, empty: bool) -> Answer:
        try:
            page, size = int(query.get("page", ["1"])[0]), min(50, int(query.get("per_page", ["25"])[0]))
            if self.before_page:
                self.before_page(page)
            found = [] if empty else self.fleet.select(query.get("label_selector", [""])[0], query.get("sort", []))
        except ValueError as wrong:
            return _error(HTTPStatus.BAD_REQUEST, message=str(wrong))
        last = max(1, math.ceil(len(found) / size))
        pagination = {
            "page": page,
            "per_page": size,
            "previous_page": page - 1 if page > 1 else None,
            "next_page": page + 1 if page < last else None,
            "last_page": last,
            "total_entries": len(found),
        }
        return _json({"servers": found[(page - 1) * size : page * size], "meta": {"pagination": pagination}})

    def _one(self, path: str) -> Answer:
        match = re.fullmatch(rf"{_SERVERS}/([0-9]+)", path)
        if match is None:
            return Answer(HTTPStatus.NOT_FOUND, b"<html>404 page not found</html>", "text/html")
        try:
            return _json({"server": self.fleet.get(int(match[1]))})
        except KeyError:
            return _error(HTTPStatus.NOT_FOUND, message=f"server with ID '{match[1]}' not found")


class ApiServer(ThreadingTCPServer):
    """Serves the API; `server_close` also ends the connections that clients keep open."""

    allow_reuse_address = True
    daemon_threads = False  # server_close waits for each
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], api: HetznerApi) -> None:
        self.api = api
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in the base class
        """Remember the connection."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - as in the base class
        """Forget the connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close everything and wait for every thread."""
        self.api.faults.clear()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client has closed it
                    connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ApiServer

    def do_GET(self) -> None:
        """Answer as the API."""
        api = self.server.api
        self._send(api.answer(self.path, self.headers.get("Authorization")), api.limit.headers())

    def do_POST(self) -> None:
        """Run a command."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, result = run_command(self.server.api.commands, self.path.removeprefix(COMMANDS), body)
        self._send(Answer(status, result), {})

    def _send(self, answer: Answer, headers: Mapping[str, str]) -> None:
        if answer.share == 0:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, "Content-Length": str(len(answer.body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = len(answer.body) if answer.share is None else int(len(answer.body) * answer.share)
        self.close_connection = self.close_connection or sent < len(answer.body)
        with contextlib.suppress(ConnectionError):  # the client has closed the connection
            self.wfile.write(answer.body[:sent])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so in the base class
        """Log nothing; `requests` has every request."""


def _json(body: Json) -> Answer:
    return Answer(HTTPStatus.OK, json.dumps(body).encode())


def _error(status: int, code: str = "", message: str = "injected by the lab") -> Answer:
    """Return an error in the API's form; those of a proxy before the API are not JSON."""
    if not code and status not in _CODES:
        return Answer(status, f"<html>{status}</html>".encode(), "text/html")
    error = {"code": code or _CODES[status], "message": message, "details": None}
    return Answer(status, json.dumps({"error": error}).encode())
