"""Collectors of audit entries on loopback: a syslog receiver over TLS that parses strictly, and an HTTP endpoint."""

import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from lab.certificates import make_certificate

_HEADER = re.compile(
    rb"<(?P<priority>0|[1-9]\d{0,2})>1 (?P<time>-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)) "
    rb"(?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<process>[!-~]{1,128}) (?P<code>[!-~]{1,32}) "
    rb"(?P<data>-|(?:"
    rb'\[[!#-<>-\\^-~]{1,32}(?: [!#-<>-\\^-~]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*\])+)(?: (?P<message>.*))?',
    re.DOTALL,
)
"""A message of RFC 5424, section 6."""
_LENGTH = re.compile(rb"[1-9][0-9]*")


@dataclass(frozen=True)
class Message:
    """A syslog message."""

    priority: int
    code: str
    data: str
    line: bytes


def parse(message: bytes) -> Message:
    """Return the parts of a message; raises ValueError if it is not of RFC 5424."""
    found = _HEADER.fullmatch(message)
    if found is None or int(found["priority"]) > 191:
        raise ValueError(f"not a message of RFC 5424: {message[:200]!r}")
    return Message(int(found["priority"]), found["code"].decode(), found["data"].decode(), found["message"])


class SyslogReceiver:
    """A receiver of RFC 5425, one connection at a time."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "collector.pem"
        key = folder / "collector.key"
        if not self.ca.exists():
            make_certificate("127.0.0.1", self.ca, key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.ca, key)
        self.messages: list[Message] = []
        self.errors: list[str] = []
        self.sessions = 0
        self.ends_after: int | None = None
        """Messages of a session after which it ends without a confirmation; None for never."""
        self.resets = True
        """Whether such a session ends with a reset, or as a TCP connection usually does."""
        self.answers = True
        """Whether a close_notify is answered with one."""
        self.closes_first = False
        """Whether sessions are closed by the receiver, before it reads anything."""
        self.reads = threading.Event()
        """While it is not set, nothing is read."""
        self.reads.set()
        self.port = 0
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"syslog+tls://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), name="syslog receiver")
        self._thread.start()

    def stop(self) -> None:
        """Stop at once, as a process that is killed does."""
        self.reads.set()
        if self._listener is not None and self._thread is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join(10)
            self._listener.close()
            self._listener = None

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            plain.settimeout(10)
            self.sessions += 1
            if self.closes_first:
                with suppress(OSError), plain:
                    self._close_first(plain)
                continue
            with suppress(OSError), plain, self._context.wrap_socket(plain, server_side=True) as connection:
                self._receive(connection)

    def _close_first(self, plain: socket.socket) -> None:
        """Close the session once there is something to read, and leave that unread."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = self._context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        plain.sendall(outgoing.read())
        plain.recv(1, socket.MSG_PEEK)
        with suppress(ssl.SSLWantReadError):
            session.unwrap()
        plain.sendall(outgoing.read())

    def _receive(self, connection: ssl.SSLSocket) -> None:
        data, count = b"", 0
        while True:
            self.reads.wait(60)
            received = connection.recv(65536)
            if not received:  # the close_notify of the sender
                if data:
                    self.errors.append(f"the session ended within a message: {data[:100]!r}")
                if self.answers:
                    connection.unwrap()
                return
            data += received
            while (frame := _next_frame(data)) is not None:
                message, data = frame
                self._take(message)
                count += 1
                if count == self.ends_after:
                    if self.resets:
                        linger = b"\1\0\0\0\0\0\0\0"  # close(2) sends a reset
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return

    def _take(self, message: bytes) -> None:
        try:
            self.messages.append(parse(message))
        except ValueError as invalid:
            self.errors.append(str(invalid))


def _next_frame(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the first message of a stream and the rest, None if it is incomplete; raises OSError if it is invalid."""
    length, space, rest = data.partition(b" ")
    if not space:
        return None
    if not _LENGTH.fullmatch(length):
        raise OSError(f"invalid length {length[:20]!r}")
    return (rest[: int(length)], rest[int(length) :]) if len(rest) >= int(length) else None


@dataclass
class HttpCollector:
    """An endpoint that keeps lines; `answer` decides about each request by its lines and returns the status."""

    answer: Callable[[list[bytes]], int] = lambda _: 204
    lines: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def take(self, request: web.Request) -> web.Response:
        """Take one batch."""
        lines = (await request.read()).splitlines(keepends=True)
        status = self.answer(lines)
        self.statuses.append(status)
        self.headers.append(dict(request.headers))
        if status < 300:
            self.lines += lines
        return web.Response(status=status, text="" if status < 300 else "try later\n")

    @asynccontextmanager
    async def serving(self, port: int = 0, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        """Listen on loopback, and yield the port."""
        app = web.Application(client_max_size=2**26)
        app.add_routes([web.post("/audit", self.take)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context)
            await site.start()
            port = runner.addresses[0][1]
            self.url = f"{'https' if context else 'http'}://127.0.0.1:{port}/audit"
            yield port
        finally:
            await runner.cleanup()
