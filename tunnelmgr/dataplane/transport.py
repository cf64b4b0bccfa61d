"""The TCP connection under an SSH connection, as asyncssh's transport: flow control that asyncssh lacks."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from tunnelmgr.dataplane.batches import BulkSender
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.fair_queue import Share, fair_queue
from tunnelmgr.dataplane.fast_path import fast_path_status, free_connection
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.dataplane.paced_reader import PacedReader
from tunnelmgr.dataplane.stream import Stream

MAX_UNSENT_BYTES: Final = 512 * 1024
"""Bytes that may wait for the socket before writers wait, for all channels of a connection together."""
KEY_EXCHANGE_POLL_SECONDS: Final = 0.01
"""Time between two checks whether a key exchange has ended."""


class SshTransport(asyncio.Transport):
    """Stands between the socket and asyncssh, whose protocol `make_protocol` returns."""

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol], connected: socket.socket) -> None:
        super().__init__(
            {"socket": connected, "sockname": connected.getsockname(), "peername": connected.getpeername()}
        )
        self._loop = asyncio.get_running_loop()
        self._stream = Stream(connected, self.end)
        self._flush_scheduled = False
        self._ended = False
        self._revoked = False
        self._expected_bytes = 0
        self.bytes_written = 0
        """Bytes that asyncssh has written here."""
        self.fast: Final = fast_path_status().active
        """Whether this connection uses the fast path."""
        self.share: Final = Share(fair_queue(self._loop))
        self.bulk: Final = BulkSender(self._stream)
        self.reader: Final = PacedReader(self._stream, self.share, self.bulk, self)
        self.protocol = make_protocol()
        self.protocol.connection_made(self)
        self.reader.start(self.protocol)

    @property
    def ends(self) -> Ends:
        """Both addresses of the connection."""
        return Ends(self.get_extra_info("sockname")[:2], self.get_extra_info("peername")[:2])

    # --- called by channels and the SSH adapter ---

    async def writable(self) -> None:
        """Wait while too much is unsent or a key exchange is running; returns at once on a lost connection."""
        while not self._ended:
            if self._stream.unsent > MAX_UNSENT_BYTES:
                await self._stream.drained()
            elif self.exchanging_keys:  # if the agent never ends it, the probe ends the connection
                await asyncio.sleep(KEY_EXCHANGE_POLL_SECONDS)
            else:
                return

    @property
    def exchanging_keys(self) -> bool:
        """Whether asyncssh defers what it was given to send, and would defer more.

        Other bytes that it writes meanwhile count as if they were those: the messages of the key exchange, one or two
        kilobytes, and its answers to unknown messages. So up to as many bytes more may be deferred.
        """
        return not self._ended and self.bytes_written < self._expected_bytes

    def expect(self, written_before: int, octets: int) -> None:
        """Record that asyncssh was given `octets` to send when `bytes_written` was `written_before`."""
        self._expected_bytes = max(self._expected_bytes, written_before) + octets

    def revoke(self) -> None:
        """Send nothing more once the connection is aborted, not even what the kernel has buffered."""
        self._revoked = True

    # --- called by asyncssh ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send at the end of the running step, or of this iteration of the loop, with all else that is written."""
        self.bytes_written += len(data)
        self._stream.put_off(data)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            if not self.share.defer(self._flush):
                self._loop.call_soon(self._flush)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that wait for the socket."""
        return self._stream.unsent

    def is_closing(self) -> bool:
        """Return whether the connection is over."""
        return self._ended

    def abort(self) -> None:
        """End now: send what the kernel takes at once, unless revoked, and drop what remains."""
        if not self._revoked:
            self._stream.flush()
        self.end(None)

    close = abort

    # --- called by the stream and the reader ---

    def end(self, lost: OSError | None) -> None:
        """Close the socket and notify asyncssh; writers find their channels closed."""
        if self._ended:
            return
        self._ended = True
        if lost is not None:
            clear_exception_frames(lost)  # asyncssh keeps it, and its frames refer to this connection
        self._stream.abort(reset=self._revoked)
        self.reader.stop()
        self.bulk.drop()
        self._loop.call_soon(self.protocol.connection_lost, lost)
        self._loop.call_soon(free_connection, self.protocol)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._stream.unsent:
            self._stream.flush()
