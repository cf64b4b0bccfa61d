"""One forwarded TCP stream, with bounded memory both ways.

asyncssh hands over what arrives by callbacks and buffers what is written without bound: a peer that grants a huge
window and does not read makes the process grow. So a writer waits here for two things, the channel's window and the
socket below (`Line`), and what arrives is held back once `READ_AHEAD` bytes are waiting.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import asyncssh

from tunnelmgr.tunnel.fastpath import await_window, send_bulk
from tunnelmgr.tunnel.line import Line

PIECE = 32 * 1024
"""Bytes handed to asyncssh at a time, where it makes the packets; what the window has no room for it holds."""
READ_AHEAD = 256 * 1024
"""Bytes that may wait to be read before the agent's side is held back."""


class ForwardedChannel(asyncssh.SSHTCPSession[bytes]):
    """A `Channel` (see core.ports) on an asyncssh session.

    No callback may raise: an exception that escapes one closes the whole SSH connection.
    """

    def __init__(self, line: Line, on_open: Callable[["ForwardedChannel"], None], on_end: Callable[[], None]) -> None:
        self._line = line
        self._on_open = on_open
        self._on_end = on_end
        self._ssh: asyncssh.SSHTCPChannel[bytes] | None = None
        self._arrived: deque[bytes] = deque()
        self._waiting = 0
        self._ended = False
        self._lost = False
        self._draining = False
        self._readable = asyncio.Event()
        self._window = asyncio.Event()
        self._window.set()

    # --- what asyncssh calls ---

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """Keep the channel."""
        self._ssh = chan

    def session_started(self) -> None:
        """Begin to serve."""
        self._on_open(self)

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:  # noqa: ARG002 - asyncssh's form
        """Queue what arrived, and hold the agent back when enough waits."""
        self._arrived.append(data)
        self._waiting += len(data)
        self._line.carried(len(data))
        if self._waiting >= READ_AHEAD and self._ssh is not None:
            self._ssh.pause_reading()
        self._readable.set()

    def eof_received(self) -> bool:
        """Note the end of the agent's side; ours stays open."""
        self._ended = True
        self._readable.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh's form
        """Wake whoever waits; nothing more comes or goes."""
        self._lost = True
        self._readable.set()
        self._window.set()
        self._on_end()

    def pause_writing(self) -> None:
        """Hold the writer: the agent's window is full."""
        self._window.clear()

    def resume_writing(self) -> None:
        """Let the writer go on."""
        self._window.set()

    # --- what the gate calls ---

    async def read(self) -> bytes:
        """Return what has arrived, `b""` at the end of the agent's side."""
        # Waits as long as the agent is silent; the gate has the deadline.
        while not self._arrived:
            # A channel that closes after its end has said all it had to say; one that closes before it was cut.
            if self._ended:
                return b""
            if self._lost:
                raise ConnectionResetError("the channel is closed")
            self._readable.clear()
            await self._readable.wait()
        data = self._arrived.popleft()
        self._waiting -= len(data)
        if self._waiting < READ_AHEAD and self._ssh is not None and not self._lost:
            self._ssh.resume_reading()
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` once the window and the socket have room for it."""
        unsent = memoryview(data)
        while True:
            sent = self._send(unsent)
            self._line.carried(sent)
            unsent = unsent[sent:]
            # Waits as long as the agent does not read; a dead one is found by the probe, which ends the connection.
            await self._window.wait()
            await self._line.writable()
            if self._lost:
                raise ConnectionResetError("the channel is closed")
            if not unsent:
                return
            await asyncio.sleep(0)  # other channels have their turn between two batches

    def _send(self, unsent: memoryview) -> int:
        """Send some of it, or have the next attempt wait; returns how much was sent."""
        if self._lost or self._ssh is None or self._ssh.is_closing():
            raise ConnectionResetError("the channel is closed")
        if sent := send_bulk(self._ssh, unsent):
            return sent
        if unsent and await_window(self._ssh):
            self._window.clear()
            return 0
        piece = bytes(unsent[:PIECE])
        try:
            self._ssh.write(piece)
        except OSError as closed:
            raise ConnectionResetError("the channel is closed") from closed
        return len(piece)

    async def wanted(self) -> bool:
        """Wait until there is something to read; False at the end of the agent's side, or once the tunnel drains."""
        # Waits as long as the agent is silent; the gate has the deadline.
        while not (self._arrived or self._ended or self._lost or self._draining):
            self._readable.clear()
            await self._readable.wait()
        return bool(self._arrived)

    def drain(self) -> None:
        """Let whoever waits for the next request go; one that is under way is not disturbed."""
        self._draining = True
        self._readable.set()

    def write_eof(self) -> None:
        """Send the end of our side."""
        if self._ssh is not None and not self._lost and not self._ssh.is_closing():
            self._ssh.write_eof()

    def close(self) -> None:
        """Close once what was written is sent."""
        if self._ssh is not None and not self._lost:
            self._ssh.close()

    def abort(self) -> None:
        """Close now."""
        if self._ssh is not None and not self._lost:
            self._ssh.abort()
