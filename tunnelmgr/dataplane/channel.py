"""One forwarded TCP stream, with bounded memory both ways.

asyncssh hands over what arrives by callbacks and buffers what is written without bound: a peer that grants a huge
window and does not read makes the process grow. So a writer waits here for two things, the channel's window and the
socket below (`SshTransport`), and the agent may send no more than its `ReceiveWindow` beyond what was read.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import asyncssh

from tunnelmgr.core.ports import Source
from tunnelmgr.dataplane.asyncssh_internals import manage_window, widen, window
from tunnelmgr.dataplane.pump import Destination, Pump, hand, send
from tunnelmgr.dataplane.receive_window import ReceiveWindow
from tunnelmgr.dataplane.transport import SshTransport

Result = TypeVar("Result")

PIECE = 32 * 1024
"""Bytes handed to asyncssh at a time; what the agent's window has no room for it holds."""
READ_AHEAD = 256 * 1024
"""Bytes that may wait to be read before the agent is held back, where asyncssh keeps the window."""


class ForwardedChannel(asyncssh.SSHTCPSession[bytes]):
    """A `Channel` (see core.ports) on an asyncssh session.

    No callback may raise: an exception that escapes one closes the whole SSH connection.
    """

    def __init__(
        self, line: SshTransport, on_open: Callable[["ForwardedChannel"], None], on_end: Callable[[], None]
    ) -> None:
        self._transport = line
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
        self._theirs: ReceiveWindow | None = None
        self._pump: Pump | None = None
        self._widest = 0

    # --- what asyncssh calls ---

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """Keep the channel, and have asyncssh hold no more than one piece for it."""
        self._ssh = chan
        if self._transport.fast:
            self._widest = window(chan)
            self._theirs = ReceiveWindow()
            manage_window(chan)
        chan.set_write_buffer_limits(0)

    def session_started(self) -> None:
        """Begin to serve."""
        self._on_open(self)

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:  # noqa: ARG002 - asyncssh's form
        """Queue what arrived, and hold the agent back when enough waits."""
        self._arrived.append(data)
        self._waiting += len(data)
        self._transport.carried(len(data))
        if self._theirs is None and self._waiting >= READ_AHEAD and self._ssh is not None:
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
        if self._pump is not None:
            self._pump.fail(ConnectionResetError("the channel is closed"))
        self._on_end()

    def pause_writing(self) -> None:
        """Hold the writer: the agent's window is full."""
        self._window.clear()

    def resume_writing(self) -> None:
        """Let the writer go on."""
        self._window.set()
        if self._pump is not None:
            self._pump.step()

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
        if self._ssh is not None and not self._lost:
            self._let_more_come(self._ssh, len(data))
        return data

    def _let_more_come(self, channel: asyncssh.SSHTCPChannel[bytes], octets: int) -> None:
        if self._theirs is None:
            if self._waiting < READ_AHEAD:
                channel.resume_reading()
        elif room := self._theirs.read(octets):
            widen(channel, room)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` once the window and the socket have room for it."""
        unsent = memoryview(data)
        while True:
            unsent = unsent[self._send(unsent) :]
            # Waits as long as the agent does not read; a dead one is found by the probe, which ends the connection.
            await self._window.wait()
            await self._transport.writable()
            if not unsent:
                return

    def _send(self, unsent: memoryview) -> int:
        """Send some of it, or have the next attempt wait; returns how many bytes were sent."""
        destination = self._destination()
        count = send(destination, unsent)
        if count is None:
            piece = bytes(unsent[:PIECE])
            try:
                hand(destination, piece)
            except OSError as closed:
                raise ConnectionResetError("the channel is closed") from closed
            count = len(piece)
        elif not count:
            self._window.clear()
        self._transport.carried(count)
        return count

    def _destination(self) -> Destination:
        return Destination(self._open(), self._transport, self._widest)

    def _open(self) -> asyncssh.SSHTCPChannel[bytes]:
        if self._lost or self._ssh is None or self._ssh.is_closing():
            raise ConnectionResetError("the channel is closed")
        return self._ssh

    async def send_from(self, source: Source, limit: int, carried: Callable[[int], None]) -> int:
        """Send what comes from `source`, as `Channel.pour` says."""

        def both(count: int) -> None:
            self._transport.carried(count)
            carried(count)

        self._pump = Pump(source, self._destination(), limit, both)
        try:
            self._pump.step()
            return await self._pump.done
        finally:
            self._pump.stop()
            self._pump = None

    async def checkpoint(self) -> None:
        """Let others run if this iteration's time is used up; see `Channel`."""
        await self._transport.share.checkpoint()

    def scheduled(self, coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """Return the coroutine such that its steps take turns with those of other agents; see `Channel`."""
        return self._transport.share.scheduled(coroutine)

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
