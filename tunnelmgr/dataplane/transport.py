"""The TCP connection under an SSH connection: asyncssh's transport, with the back-pressure that asyncssh lacks.

- asyncssh ignores `pause_writing` from its transport, and puts aside without bound what is written while keys are
  exchanged, which the other side may begin and never end. So writers wait on the line instead. asyncssh tells nobody
  that it puts something aside, but what it sends it writes here at once: where less was written than it was handed, the
  rest was put aside (`expect`).
- asyncssh processes whatever it is given in one go, and a read may hold thousands of messages: it is given a piece at a
  time, in steps of the agent's `Share`, and no more than its `NoOpBudget` allows. What waits is left in the socket, and
  so with the agent.
- asyncssh answers requests whether or not the answers are read: while too many wait, nothing more is read.
- asyncssh sends each message, and an IGNORE before it, with a call of their own: what it writes in one turn of the loop
  goes out together.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from tunnelmgr.dataplane.asyncssh_internals import MAX_PACKET_BYTES
from tunnelmgr.dataplane.fair_queue import NoOpBudget, Share, fair_queue
from tunnelmgr.dataplane.fast_path import fast_path_status, free_connection, packet_processor
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.dataplane.socket_options import acknowledge
from tunnelmgr.dataplane.ssh_packets import Batch
from tunnelmgr.dataplane.stream import Stream

MAX_UNSENT_BYTES: Final = 512 * 1024
"""Bytes that may wait for the socket before writers are held, for all channels of a connection together."""
MAX_UNREAD_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Bytes that may wait for the socket before nothing more is read; channels alone do not come near it."""
MIN_READ_BYTES, MAX_READ_BYTES = 512, 256 * 1024
"""Bytes of a piece."""
QUICK, SLOW = 0.0003, 0.001
"""Seconds that a piece should take: one that is quicker makes the next larger, one that is slower smaller."""
RECHECK: Final = 0.05
"""Seconds between two looks whether the agent reads its answers."""
LATELY: Final = 0.25
"""Seconds after a rest for which the agent counts as one that floods."""
KEY_EXCHANGE_POLL_SECONDS: Final = 0.01
"""Seconds between two looks whether a key exchange is over."""
SPARE: Final = 4
"""Batches that are kept for the next use."""
BATCHES_PER_READ: Final = 4
"""Batches that may go out before what the agent says meanwhile is read."""


class _Bench(threading.local):
    """What the lines of a thread share: where a piece is received and worked off, without a pause; spare batches.

    One place for all: a piece of its own for each, and what it is cut into, would scatter the process's memory.
    """

    def __init__(self) -> None:
        self.room = memoryview(bytearray(MAX_PACKET_BYTES + MAX_READ_BYTES))
        self.batches: list[Batch] = []


_bench: Final = _Bench()


class SshTransport(asyncio.Transport):
    """Stands between the socket and asyncssh, whose protocol `make` returns, at a pace that all can bear."""

    def __init__(self, make: Callable[[], asyncio.Protocol], connected: socket.socket) -> None:
        super().__init__(
            {"socket": connected, "sockname": connected.getsockname(), "peername": connected.getpeername()}
        )
        self._loop = asyncio.get_running_loop()
        self._stream = Stream(connected, self._end, self._let_go)
        self._no_ops = NoOpBudget(self._loop.time())
        self._piece = MIN_READ_BYTES
        self._resting: asyncio.TimerHandle | None = None
        self._flushing = False
        self._held: Batch | None = None
        self._tail = b""
        self._ended = False
        self._revoked = False
        self._quickened = False
        self._batches = self._seen = 0
        self._rested = float("-inf")
        self._queued = False  # whether `_read` waits for its turn
        self._more = False  # whether the tail holds what can be processed now
        self._expected = 0
        self.written = 0
        """Bytes that asyncssh has written here."""
        self.fast: Final = fast_path_status().active
        """Whether data may go past asyncssh."""
        self.share: Final = Share(fair_queue(self._loop))
        self.pumps = 0
        """How many carry bulk data on this line; what its agent says meanwhile is of these."""
        self.reads = 0
        """How often bytes have arrived."""
        self.protocol = make()
        self._process = packet_processor(self.protocol)
        self.protocol.connection_made(self)
        self._stream.notify_readable(self._on_readable)

    @property
    def ends(self) -> Ends:
        """Both addresses of the connection."""
        return Ends(self.get_extra_info("sockname")[:2], self.get_extra_info("peername")[:2])

    # --- for those who write ---

    async def writable(self) -> None:
        """Wait until enough of what was written is on its way; a lost line never blocks."""
        while not self._ended:
            if self._stream.unsent > MAX_UNSENT_BYTES:
                await self._stream.drained()
            elif self.exchanging_keys:  # ended by the probe where the other side never ends it
                await asyncio.sleep(KEY_EXCHANGE_POLL_SECONDS)
            else:
                return

    @property
    def exchanging_keys(self) -> bool:
        """Tell whether asyncssh has put aside what it was handed, and would put aside more.

        What else it writes meanwhile counts as if it were that: the messages of the key exchange, a kilobyte or two,
        and its answers to unknown messages. So beyond what is waited for, it holds as many bytes as those.
        """
        return not self._ended and self.written < self._expected

    def expect(self, before: int, octets: int) -> None:
        """Take note that asyncssh was handed so many bytes to send when `written` was at `before`."""
        self._expected = max(self._expected, before) + octets

    def idle(self) -> bool:
        """Send what was put off, and tell whether the kernel has taken everything."""
        if self._stream.unsent:
            self._stream.flush()
        return not self._stream.unsent

    def when_idle(self, ready: Callable[[], None]) -> None:
        """Call `ready` once the kernel has taken everything, each who waits in turn; never, once the line is lost."""
        self._stream.when_drained(ready)

    def send_batch(self, batch: Batch, end: int) -> None:
        """Send a batch's packets, on an idle line; the batch is the line's from then on."""
        self._held = batch
        self._batches += 1
        self._stream.send(batch.buffer[:end])

    def revoke(self) -> None:
        """Let nothing more out, not even what the kernel holds, once the connection is aborted."""
        self._revoked = True

    def nagle_disabled(self) -> None:
        """Take note that the other side no longer holds back what is small until we acknowledge what came before."""
        self._quickened = True

    @property
    def throttled(self) -> bool:
        """Whether the agent is being slowed, or was a moment ago: a flood has its turns between the rests."""
        return self._loop.time() < self._rested + LATELY

    def carried(self, octets: int) -> None:
        """Credit the agent with bytes that a channel carried."""
        self._no_ops.earn(octets)

    # --- for asyncssh ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send with all else that is written in the running step, or else in this iteration of the loop."""
        self.written += len(data)
        self._stream.put_off(data)
        if not self._flushing:
            self._flushing = True
            if not self.share.defer(self._flush):
                self._loop.call_soon(self._flush)

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait for the socket."""
        return self._stream.unsent

    def is_closing(self) -> bool:
        """Tell whether the connection is over."""
        return self._ended

    def abort(self) -> None:
        """End now; what was put off is still sent, as far as the kernel takes it at once, and the rest is dropped."""
        if not self._revoked:
            self._stream.flush()
        self._end(None)

    close = abort

    # --- how ---

    def _let_go(self) -> None:
        """Keep the last batch for the next use: all of it is sent."""
        if self._held is not None:
            keep(self._held)
            self._held = None

    def _flush(self) -> None:
        self._flushing = False
        if self._stream.unsent:
            self._stream.flush()

    def _on_readable(self) -> None:
        if self._queued:
            self._stream.notify_readable(
                None
            )  # else the loop would call again in each iteration until the step's turn comes
        elif not self._puts_off():
            self._queued = not self.share.run(self._read)

    def _read(self) -> None:
        """Process one piece, and see when the next one may follow."""
        self._queued = False
        if self._ended:
            return
        try:
            arrived = self._receive()
        except ConnectionError as lost:
            self._end(lost)
            return
        if arrived is None:
            self._watch()
            return
        self.reads += 1
        # The thread's own time: another process on a busy machine is not the agent's to pay for.
        began = time.thread_time()
        count, self._more = self._process(self.protocol, arrived, lambda: self.share.out_of_time)
        self._tail = bytes(arrived[count:])
        self._settle(count, time.thread_time() - began)

    def _receive(self) -> memoryview | None:
        """Return what there is to process, None if nothing has arrived; raises ConnectionError."""
        held, count = len(self._tail), 0
        if not self._more:
            received = self._stream.receive_into((_bench.room[held : held + self._piece],))
            if received is None:
                return None
            if not self._quickened:
                acknowledge(self._stream.socket)
            if not received:
                self.protocol.eof_received()
                self._end(None)
                return None
            count = received
        arrived = _bench.room[: held + count]
        arrived[:held] = self._tail
        return arrived

    def _puts_off(self) -> bool:
        """Leave what has arrived for a later turn of the loop, as long as batches go out: it is window adjusts then.

        Each costs as much to take in alone as many do together. Where no batch has gone out since the last look, the
        agent's window may be what lacks.
        """
        if self._seen < self._batches < BATCHES_PER_READ:
            self._seen = self._batches
            return True
        self._batches = self._seen = 0
        return False

    def _settle(self, count: int, took: float) -> None:
        """Pay for a piece, and process no more before there is credit."""
        self._no_ops.spend(took)
        if self._more:
            self._piece = max(MIN_READ_BYTES, min(MAX_READ_BYTES, count))
        elif took < QUICK:
            self._piece = min(MAX_READ_BYTES, self._piece * 2)
        elif took > SLOW:
            self._piece = max(MIN_READ_BYTES, int(self._piece * SLOW / took))
        self._go_on()

    def _go_on(self) -> None:
        """Process what follows, at once or after a rest."""
        self._resting = None
        now = self._loop.time()
        rest = self._no_ops.rest(now)
        if rest:
            self._rested = now + rest
        if self._stream.unsent > MAX_UNREAD_ANSWER_BYTES:
            rest = max(rest, RECHECK)
        if self._ended:
            return
        if rest:
            self._stream.notify_readable(None)
            self._resting = self._loop.call_later(rest, self._go_on)
        else:
            self._watch()

    def _watch(self) -> None:
        """Have `_read` run once there is something to process."""
        if self._ended:
            return
        if self._more:
            self._stream.notify_readable(None)
            self._queued = True
            self.share.enqueue(self._read)
        else:
            self._stream.notify_readable(self._on_readable)

    def _end(self, lost: OSError | None) -> None:
        """Let everybody go: writers find their channels closed."""
        if self._ended:
            return
        self._ended = True
        self._stream.abort(reset=self._revoked)
        if self._resting is not None:
            self._resting.cancel()
        self._held = None
        self._loop.call_soon(self.protocol.connection_lost, lost)
        self._loop.call_soon(free_connection, self.protocol)


def spare() -> Batch:
    """Return an empty batch."""
    return _bench.batches.pop() if _bench.batches else Batch()


def keep(batch: Batch) -> None:
    """Take back a batch that nobody needs any more."""
    if len(_bench.batches) < SPARE:
        _bench.batches.append(batch)
