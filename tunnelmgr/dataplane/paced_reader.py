"""Reads one connection at a pace that does not delay other agents; see the package docstring, *Receiving*."""

import asyncio
import threading
import time
from typing import Final, Protocol

from tunnelmgr.dataplane.asyncssh_internals import MAX_PACKET_BYTES
from tunnelmgr.dataplane.batches import BulkSender
from tunnelmgr.dataplane.fair_queue import NoOpBudget, Share
from tunnelmgr.dataplane.fast_path import packet_processor
from tunnelmgr.dataplane.socket_options import acknowledge
from tunnelmgr.dataplane.stream import Stream

MIN_READ_BYTES, MAX_READ_BYTES = 512, 256 * 1024
"""Bounds of a read's size."""
FAST_READ_SECONDS, SLOW_READ_SECONDS = 0.0003, 0.001
"""CPU time of a read: one that takes less doubles the next read's size, one that takes more reduces it."""
MAX_UNREAD_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Bytes that may wait for the socket before reading pauses; data of channels alone never comes near it."""
MAX_REPORTS: Final = 8
"""How often a socket whose read is queued may be reported again before it is no longer watched.

Most queued reads run within a few iterations of the loop, and to stop watching a socket and to start again costs as
much as twenty reports.
"""
ANSWER_POLL_SECONDS: Final = 0.05
"""Time between two checks whether the agent reads its answers."""


class ConnectionOwner(Protocol):
    """Owns the connection that is read; `transport.py` implements it."""

    def end(self, lost: OSError | None) -> None:
        """End the connection: the agent closed it, or it is `lost`."""
        ...


class _ReadBuffer(threading.local):
    """One buffer for all connections of a thread: a read is processed before the next one begins.

    A buffer per connection, and the pieces cut from it, would fragment the process's memory.
    """

    def __init__(self) -> None:
        self.view = memoryview(bytearray(MAX_PACKET_BYTES + MAX_READ_BYTES))


_buffer: Final = _ReadBuffer()


class PacedReader:
    """Hands the bytes of one connection to its protocol: one read per step, as the CPU budget allows."""

    def __init__(self, stream: Stream, share: Share, bulk: BulkSender, owner: ConnectionOwner) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._share = share
        self._bulk = bulk
        self._owner: ConnectionOwner | None = owner
        self._budget = NoOpBudget(self._loop.time())
        self._read_bytes = MIN_READ_BYTES
        self._rest_timer: asyncio.TimerHandle | None = None
        self._reports = 0  # of a readable socket since `_read` waits in the fair queue; 0 while it does not
        self._tail = b""  # bytes received and not processed
        self._tail_ready = False  # whether the tail holds whole packets
        self.reads = 0
        """Number of reads that returned bytes."""
        self.acknowledge_at_once = True
        """Whether to send each ACK without delay; see `socket_options`."""

    def start(self, protocol: asyncio.Protocol) -> None:
        """Begin to read for `protocol`."""
        self._protocol = protocol
        self._process = packet_processor(protocol)
        self._stream.notify_readable(self._on_readable)

    def stop(self) -> None:
        """Read no more; the stream is closed by its owner."""
        self._owner = None
        if self._rest_timer is not None:
            self._rest_timer.cancel()

    @property
    def throttled(self) -> bool:
        """Whether the agent has exhausted its no-op budget, now or a moment ago."""
        return self._budget.exhausted_recently(self._loop.time())

    def credit(self, octets: int) -> None:
        """Credit the no-op budget with bytes that a channel carried."""
        self._budget.earn(octets)

    def _on_readable(self) -> None:
        if self._reports:
            self._reports += 1
            if self._reports > MAX_REPORTS:
                self._stream.notify_readable(None)  # the loop would report the same bytes in every iteration
        elif not self._bulk.defers_read() and not self._share.run(self._read):
            self._reports = 1

    def _read(self) -> None:
        """Process one read, and schedule the next one."""
        self._reports = 0
        if self._owner is None:
            return
        try:
            received = self._receive()
        except ConnectionError as lost:
            self._owner.end(lost)
            return
        if received is None:
            self._watch()
            return
        self.reads += 1
        # The thread's CPU time: the agent does not pay for other processes on a busy machine.
        began = time.thread_time()
        count, self._tail_ready = self._process(self._protocol, received, self._share.queue.is_out_of_time)
        self._tail = bytes(received[count:])
        self._finish_read(count, time.thread_time() - began)

    def _receive(self) -> memoryview | None:
        """Return the tail and what has arrived since, None if there is nothing to process; raises ConnectionError."""
        held, count = len(self._tail), 0
        if not self._tail_ready:
            received = self._stream.receive_into((_buffer.view[held : held + self._read_bytes],))
            if received is None:
                return None
            if self.acknowledge_at_once:
                acknowledge(self._stream.socket)
            if not received:
                self._on_eof()
                return None
            count = received
        unprocessed = _buffer.view[: held + count]
        unprocessed[:held] = self._tail
        return unprocessed

    def _on_eof(self) -> None:
        self._protocol.eof_received()
        if self._owner is not None:
            self._owner.end(None)

    def _finish_read(self, count: int, seconds: float) -> None:
        """Charge the budget, and choose the next read's size."""
        self._budget.spend(seconds)
        if self._tail_ready:
            self._read_bytes = max(MIN_READ_BYTES, min(MAX_READ_BYTES, count))
        elif seconds < FAST_READ_SECONDS:
            self._read_bytes = min(MAX_READ_BYTES, self._read_bytes * 2)
        elif seconds > SLOW_READ_SECONDS:
            self._read_bytes = max(MIN_READ_BYTES, int(self._read_bytes * SLOW_READ_SECONDS / seconds))
        self._schedule_next()

    def _schedule_next(self) -> None:
        """Schedule the next read, at once or after a rest."""
        self._rest_timer = None
        rest = self._budget.rest(self._loop.time())
        if self._stream.unsent > MAX_UNREAD_ANSWER_BYTES:
            rest = max(rest, ANSWER_POLL_SECONDS)
        if self._owner is None:
            return
        if rest:
            self._stream.notify_readable(None)
            self._rest_timer = self._loop.call_later(rest, self._schedule_next)
        else:
            self._watch()

    def _watch(self) -> None:
        """Run `_read` when there is something to process."""
        if self._owner is None:
            return
        if self._tail_ready:
            self._stream.notify_readable(None)
            self._reports = 1
            self._share.enqueue(self._read)
        else:
            self._stream.notify_readable(self._on_readable)
