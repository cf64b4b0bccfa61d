"""One forwarded TCP stream, with bounded memory in both directions; see the package docstring."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import asyncssh

from tunnelmgr.core.ports import ByteSource
from tunnelmgr.dataplane.asyncssh_internals import disable_asyncssh_window, open_window, send_window
from tunnelmgr.dataplane.pump import Destination, Pump, send_packets, send_through_asyncssh
from tunnelmgr.dataplane.receive_buffer import ReceiveBuffer
from tunnelmgr.dataplane.receive_window import ReceiveWindow
from tunnelmgr.dataplane.transport import SshTransport

Result = TypeVar("Result")

ASYNCSSH_PIECE_BYTES = 32 * 1024
"""Bytes given to asyncssh at a time; it buffers what exceeds the agent's window."""
READ_AHEAD_BYTES = 256 * 1024
"""Unread bytes at which reading pauses, if asyncssh manages the receive window."""

FIRST_REQUEST_SECONDS = 1.0
"""Seconds for which a channel that drains waits for its first bytes."""


class ChannelOwner(Protocol):
    """Is notified when a channel begins and ends; `tunnel/sessions.py` implements it. Neither method may raise."""

    def channel_opened(self, channel: "ForwardedChannel") -> None:
        """Take over the channel, and serve it."""
        ...

    def channel_closed(self) -> None:
        """Remove one channel from the count; called once for each channel, even if it was never opened."""
        ...


class NoOwner:
    """The owner of a channel that this side opened and its opener uses."""

    def channel_opened(self, channel: "ForwardedChannel") -> None:
        """Do nothing."""

    def channel_closed(self) -> None:
        """Do nothing."""


class ForwardedChannel(asyncssh.SSHTCPSession[bytes]):
    """An `AgentChannel` (see core.ports) on an asyncssh session.

    No callback may raise: an exception that escapes one closes the whole SSH connection.
    """

    def __init__(self, transport: SshTransport, owner: ChannelOwner) -> None:
        self._transport = transport
        self._owner = owner
        self._received = ReceiveBuffer()
        self._receive_window: ReceiveWindow | None = None
        self._ssh: asyncssh.SSHTCPChannel[bytes] | None = None
        self._lost = False
        self._send_window_open = asyncio.Event()
        self._send_window_open.set()
        self._initial_send_window = 0
        self._pump: Pump | None = None
        self._takes: Callable[[bytes], bool] | None = None

    # --- called by asyncssh ---

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """Keep the channel, and have asyncssh buffer no more than one piece for it."""
        self._ssh = chan
        if self._transport.fast:
            self._initial_send_window = send_window(chan)
            self._receive_window = ReceiveWindow()
            disable_asyncssh_window(chan)
        chan.set_write_buffer_limits(0)

    def session_started(self) -> None:
        """Hand the channel to its owner."""
        self._owner.channel_opened(self)

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:  # noqa: ARG002 - asyncssh's form
        """Queue what arrived, and pause reading if too much is unread."""
        self._transport.reader.credit(len(data))
        if self._takes is not None and not self._received.size and self._takes(data):
            self._count_read(len(data))
            return
        self._received.append(data)
        if self._receive_window is None and self._received.size >= READ_AHEAD_BYTES and self._ssh is not None:
            self._ssh.pause_reading()

    def eof_received(self) -> bool:
        """Note the end of the agent's side; this side stays open."""
        self._received.end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh's form
        """Wake readers and writers: the channel is closed."""
        self._lost = True
        self._received.close()
        self._send_window_open.set()
        if self._pump is not None:
            self._pump.fail(ConnectionResetError("the channel is closed"))
        self._owner.channel_closed()

    def pause_writing(self) -> None:
        """Make writers wait: the agent's window is full."""
        self._send_window_open.clear()

    def resume_writing(self) -> None:
        """Let writers and the pump continue."""
        self._send_window_open.set()
        if self._pump is not None:
            self._pump.step()

    # --- called by the gate ---

    @property
    def initial_send_window(self) -> int:
        """Bytes that the agent's sshd accepts before its client reads any; 0 without the fast path."""
        return self._initial_send_window

    async def read(self) -> bytes:
        """Return what has arrived; see `Channel`."""
        while (data := self._received.take()) is None:
            await self._received.changed()
        self._count_read(len(data))
        return data

    async def read_unless(self, done: Callable[[], bool]) -> bytes | None:
        """Return what has arrived, as `read` does, or None once `done` returns True; `wake` has it called again."""
        while (data := self._received.take()) is None:
            if done():
                return None
            await self._received.changed()
        self._count_read(len(data))
        return data

    def wake(self) -> None:
        """Have `read_unless` look again."""
        self._received.wake()

    def _count_read(self, octets: int) -> None:
        """Let the agent send as many bytes more as were read."""
        channel = self._ssh
        if not octets or channel is None or self._lost:
            return
        if self._receive_window is None:
            if self._received.size < READ_AHEAD_BYTES:
                channel.resume_reading()
        elif room := self._receive_window.read(octets):
            open_window(channel, room)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` as the agent's window and the socket have room; see `Channel`."""
        unsent = memoryview(data)
        while True:
            unsent = unsent[self._send(unsent) :]
            # Waits as long as the agent does not read. If the agent is gone, the probe ends the connection.
            await self._send_window_open.wait()
            await self._transport.writable()
            if not unsent:
                return

    def _send(self, unsent: memoryview) -> int:
        """Send a part and return its size; 0 if the window is closed, which the caller then waits for."""
        destination = self._destination()
        count = send_packets(destination, unsent)
        if count is None:
            piece = bytes(unsent[:ASYNCSSH_PIECE_BYTES])
            try:
                send_through_asyncssh(destination, piece)
            except OSError as closed:
                raise ConnectionResetError("the channel is closed") from closed
            count = len(piece)
        elif not count:
            self._send_window_open.clear()
        self._transport.reader.credit(count)
        return count

    def _destination(self) -> Destination:
        if self._lost or self._ssh is None or self._ssh.is_closing():
            raise ConnectionResetError("the channel is closed")
        return Destination(self._ssh, self._transport, self._initial_send_window)

    async def send_from(self, source: ByteSource, limit: int, on_sent: Callable[[int], None]) -> int:
        """Send what arrives from `source`; see `Channel`."""

        def sent(count: int) -> None:
            self._transport.reader.credit(count)
            on_sent(count)

        self._pump = Pump(source, self._destination(), limit, sent)
        try:
            self._pump.step()
            return await self._pump.done
        finally:
            self._pump.stop()
            self._pump = None

    async def checkpoint(self) -> None:
        """Let other agents run if this iteration's CPU time is used up; see `Channel`."""
        await self._transport.share.checkpoint()

    def scheduled(self, coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """Return the coroutine with each of its steps scheduled by the fair queue; see `Channel`."""
        return self._transport.share.scheduled(coroutine)

    async def wanted(self) -> bool:
        """Wait until there is something to read; False at the end of the agent's side, or when the tunnel drains."""
        # Waits as long as the agent sends nothing: the gate sets the deadline.
        return await self._received.readable()

    def intercept(self, takes: Callable[[bytes], bool] | None) -> None:
        """Offer what arrives while nothing is unread to `takes`; see `AgentChannel`."""
        self._takes = takes

    @property
    def idle(self) -> bool:
        """Whether no request is in progress; a raw stream is never idle once it is read."""
        return self._received.idle

    async def closed(self) -> None:
        """Wait until the agent's sshd has passed on everything and closed the channel, or the connection is lost."""
        # Waits as long as the transfer takes; the caller sets the deadline.
        while not self._lost:
            await self._received.changed()

    def drain(self) -> None:
        """End the wait for a next request; a request in progress continues.

        The first request of a fresh channel is waited for: a client connected to it in good faith a moment ago.
        """
        if self._received.fresh:
            asyncio.get_running_loop().call_later(FIRST_REQUEST_SECONDS, self._received.drain)
        else:
            self._received.drain()

    def write_eof(self) -> None:
        """Send the end of our side."""
        if self._ssh is not None and not self._lost and not self._ssh.is_closing():
            self._ssh.write_eof()

    def close(self) -> None:
        """Close once everything written is sent."""
        if self._ssh is not None and not self._lost:
            self._ssh.close()

    def abort(self) -> None:
        """Close now."""
        if self._ssh is not None and not self._lost:
            self._ssh.abort()
