"""Server-sent events (HTML standard, section 9.2): a bounded number of clients, none of which can use up memory.

Nothing is queued for a client. It is woken, and takes what is new by itself; one that does not take it is dropped.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import web

PATIENCE: Final = 10.0
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
        self.closed = False

    async def start(self) -> None:
        """Send the head of the response."""
        await self.response.prepare(self._request)
        await self._write(f"retry: {RETRY}\n\n")

    async def send(self, event: str, data: str, id_: str | None = None) -> None:
        """Send one event; `data` is one line. Raises ConnectionError if the client is gone or does not accept it."""
        number = "" if id_ is None else f"id: {id_}\n"
        await self._write(f"{number}event: {event}\ndata: {data}\n\n")

    def wake(self) -> None:
        """End the wait of this stream."""
        self._wake.set()

    async def wait(self, seconds: float = HEARTBEAT) -> bool:
        """Wait to be woken, for at most this time; returns whether it was. Sends a heartbeat if not."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            if seconds >= HEARTBEAT:
                await self._write(": still here\n\n")
            return False
        self._wake.clear()
        return True

    async def _write(self, text: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self.response.write(text.encode())
        except TimeoutError as late:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise SlowClientError(f"a message was not accepted within {PATIENCE:g} s") from late


class EventStreams:
    """The open streams, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[EventStream] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def open(self, request: web.Request) -> AsyncIterator[EventStream]:
        """Open a stream until its client is gone; raises HTTPServiceUnavailable if there are too many."""
        if self._closed or len(self._open) >= self._limit:
            raise web.HTTPServiceUnavailable(
                text=f"{self._limit} clients have a stream open already; try again later\n",
                headers={"Retry-After": "5"},
            )
        stream = EventStream(request)
        self._open.add(stream)
        try:
            with suppress(ConnectionError):
                yield stream
        finally:
            self._open.discard(stream)

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
