"""The bytes that have arrived on one channel and are not read yet."""

import asyncio
from collections import deque


class ReceiveBuffer:
    """Received bytes in order, the end of the agent's side, and the reader that waits for either."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._closed = False
        self._draining = False
        self.size = 0
        """Bytes that wait to be read."""
        self.idle = True
        """Whether nothing is in progress: the gate has read nothing yet, or it waits for the agent's next request."""
        self.fresh = True
        """Whether nothing has ever arrived."""

    def append(self, data: bytes) -> None:
        """Add bytes that arrived."""
        self.fresh = False
        self._pieces.append(data)
        self.size += len(data)
        self._changed.set()

    def end(self) -> None:
        """Mark the end of the agent's side."""
        self._ended = True
        self._changed.set()

    def close(self) -> None:
        """Mark the end of the channel; what has arrived can still be read."""
        self._closed = True
        self._changed.set()

    def drain(self) -> None:
        """Let `readable` return although nothing has arrived."""
        self._draining = True
        self._changed.set()

    def take(self) -> bytes | None:
        """Return the next bytes, `b""` at the end of the agent's side, None if nothing has arrived.

        Raises ConnectionResetError if the channel was closed before that end.
        """
        self.idle = False
        if self._pieces:
            data = self._pieces.popleft()
            self.size -= len(data)
            return data
        if self._ended:
            return b""
        if self._closed:
            raise ConnectionResetError("the channel is closed")
        return None

    def wake(self) -> None:
        """Let `changed` return although nothing has arrived."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait for the next change, as long as the agent sends nothing: the gate sets the deadline."""
        self._changed.clear()
        await self._changed.wait()

    async def readable(self) -> bool:
        """Wait for bytes; returns False at the end of the agent's side, or when the channel closes or drains."""
        self.idle = True
        while not (self._pieces or self._ended or self._closed or self._draining):
            await self.changed()
        return bool(self._pieces)
