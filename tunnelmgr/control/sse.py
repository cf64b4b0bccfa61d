"""Server-sent events (HTML standard, section 9.2): a bounded number of clients, none of which can use up memory.

Nothing is queued for a client. It is woken, and takes what is new by itself; one that does not take it is dropped.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import web

from tunnelmgr.control.callers import client_of, too_many

MESSAGE_TIMEOUT: Final = 10.0
"""Seconds that a client may take to accept a message, beyond what the socket's buffers hold."""
HEARTBEAT: Final = 15.0
"""Seconds after which a comment is sent if nothing else was, so that a connection that has ended is noticed."""
RETRY: Final = 2000
"""Milliseconds after which a browser connects again."""
HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would otherwise collect the events
}


class SlowClientError(ConnectionError):
    """The client did not accept a message in time."""


class EventStream:
    """The stream to one client."""

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=HEADERS)
        self._request = request
        self._wake = asyncio.Event()
        self._wrote = time.monotonic()
        self.client = client_of(request)
        self.closed = False

    async def start(self) -> None:
        """Send the head of the response."""
        await self.response.prepare(self._request)
        await self._write(f"retry: {RETRY}\n\n")

    async def send(self, event: str, data: str, id_: str | None = None) -> None:
        """Send one event; `data` is one line. Raises ConnectionError if the client is gone or does not accept it."""
        number = "" if id_ is None else f"id: {id_}\n"
        await self._write(f"{number}event: {event}\ndata: {data}\n\n")

    @property
    def is_lost(self) -> bool:
        """Whether the client has gone; the stream itself notices that with its next message."""
        return self._request.transport is None or self._request.transport.is_closing()

    def wake(self) -> None:
        """End the wait of this stream."""
        self._wake.set()

    async def wait(self, seconds: float = HEARTBEAT) -> bool:
        """Wait to be woken, for at most this time; returns whether it was. Sends a heartbeat if not."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            if time.monotonic() - self._wrote >= HEARTBEAT:
                await self._write(": heartbeat\n\n")
            return False
        self._wake.clear()
        return True

    async def _write(self, text: str) -> None:
        self._wrote = time.monotonic()
        try:
            async with asyncio.timeout(MESSAGE_TIMEOUT):
                await self.response.write(text.encode())
        except TimeoutError as late:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise SlowClientError(f"a message was not accepted within {MESSAGE_TIMEOUT:g} s") from late


class EventStreams:
    """The open streams: at most `limit`, of which one client may have half."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[EventStream] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def open(self, request: web.Request) -> AsyncIterator[EventStream]:
        """Open a stream until its client is gone; raises HTTPServiceUnavailable if there are too many."""
        stream = EventStream(request)
        self._require_room(stream.client)
        self._open.add(stream)
        try:
            with suppress(ConnectionError):
                yield stream
        finally:
            self._open.discard(stream)

    def _require_room(self, client: str) -> None:
        present = [stream for stream in self._open if not stream.is_lost]
        own = sum(stream.client == client for stream in present)
        if not self._closed and len(present) < self._limit and own < max(1, self._limit // 2):
            return
        raise too_many(f"streams are open ({self._limit} streams, {self._limit // 2} of one client)")

    def wake(self) -> None:
        """Wake every stream."""
        for stream in self._open:
            stream.wake()

    def close(self) -> None:
        """End every stream, and open none any more."""
        self._closed = True
        for stream in self._open:
            stream.closed = True
            stream.wake()
