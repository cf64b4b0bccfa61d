"""Bulk sending on one connection: the batch in flight, reads deferred meanwhile, and the thread's pool of batches."""

import threading
from collections.abc import Callable
from typing import Final

from tunnelmgr.dataplane.ssh_packets import Batch
from tunnelmgr.dataplane.stream import Stream

MAX_POOLED_BATCHES: Final = 4
"""Batches that a thread keeps for reuse."""
BATCHES_PER_READ: Final = 4
"""Batches that may be sent before pending input is read."""


class BulkSender:
    """Sends batches of sealed packets; a batch is returned to the pool once the kernel has taken all of it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._in_flight: Batch | None = None
        self._sent = 0
        self._sent_at_last_deferral = 0
        self.pumps = 0
        """Pumps that are sending on this connection."""
        stream.notify_drained(self._release)

    def idle(self) -> bool:
        """Flush pending writes and return whether the kernel has taken everything."""
        if self._stream.unsent:
            self._stream.flush()
        return not self._stream.unsent

    def when_idle(self, ready: Callable[[], None]) -> None:
        """Call `ready` once, when the kernel has taken everything; never, if the connection ends first.

        Callers that wait at the same time are called in order, one per iteration of the loop.
        """
        self._stream.when_drained(ready)

    def send(self, batch: Batch, end: int) -> None:
        """Send the first `end` bytes of a batch, which must not change from now on; only while `idle`."""
        self._in_flight = batch
        self._sent += 1
        self._stream.send(batch.buffer[:end])

    def defers_read(self) -> bool:
        """Return whether pending input should stay in the socket: during bulk sends it is mostly WINDOW_ADJUST.

        Processing each alone costs as much as processing many together. Input is read after `BATCHES_PER_READ` batches,
        and as soon as no batch was sent since the last deferral: the sender may be waiting for the agent's window.
        """
        if self._sent_at_last_deferral < self._sent < BATCHES_PER_READ:
            self._sent_at_last_deferral = self._sent
            return True
        self._sent = self._sent_at_last_deferral = 0
        return False

    def drop(self) -> None:
        """Forget the batch in flight: the connection is over."""
        self._in_flight = None

    def _release(self) -> None:
        if self._in_flight is not None:
            return_batch(self._in_flight)
            self._in_flight = None


class _BatchPool(threading.local):
    """Free batches, one pool per thread and thus per event loop."""

    def __init__(self) -> None:
        self.free: list[Batch] = []


_pool: Final = _BatchPool()


def take_batch() -> Batch:
    """Return an unused batch."""
    return _pool.free.pop() if _pool.free else Batch()


def return_batch(batch: Batch) -> None:
    """Give a batch back to the pool."""
    if len(_pool.free) < MAX_POOLED_BATCHES:
        _pool.free.append(batch)
