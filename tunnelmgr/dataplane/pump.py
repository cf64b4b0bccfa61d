"""Bulk data from a socket to an agent, batch by batch; see the package docstring, *Sending*."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import asyncssh

from tunnelmgr.core.ports import ByteSource
from tunnelmgr.dataplane.asyncssh_internals import SendState, account, await_window, send_state
from tunnelmgr.dataplane.batches import return_batch, take_batch
from tunnelmgr.dataplane.ssh_packets import BATCH_PACKETS, PACKET_DATA_BYTES
from tunnelmgr.dataplane.transport import KEY_EXCHANGE_POLL_SECONDS, SshTransport

SOLE_PUMP_FRACTION, SHARED_FRACTION = 32, 8
"""Bulk data is sent once 1/32 of the initial window is open (sole pump), or 1/32 per pump up to 1/8 (shared).

Of the 2 MiB of OpenSSH's sshd, that is two packets, or up to eight.
"""


@dataclass(frozen=True, slots=True)
class Destination:
    """A channel, the transport below, and the agent's window when the channel was opened, in bytes."""

    channel: asyncssh.SSHTCPChannel[bytes]
    transport: SshTransport
    initial_window: int


def send_packets(destination: Destination, data: memoryview) -> int | None:
    """Send as much of `data` as one batch and the agent's window take, at the end of this iteration of the loop.

    Returns how many bytes: 0 while the window is closed, None if asyncssh has to send them.
    """
    state = send_state(destination.channel) if destination.transport.fast else None
    if state is None:
        return None
    if not state.window:
        await_window(destination.channel)
        return 0
    batch = take_batch()
    count = batch.fill(data[: state.window])
    account(destination.channel, count)
    destination.transport.write(bytes(batch.buffer[: batch.seal(state.seal, state.channel, count)]))
    return_batch(batch)
    return count


def send_through_asyncssh(destination: Destination, piece: bytes) -> None:
    """Have asyncssh send a piece, and the transport expect its bytes; raises OSError if the channel is closed.

    What exceeds the agent's window stays in the channel's own buffer, and is not expected.
    """
    channel, transport = destination.channel, destination.transport
    buffered, written_before = channel.get_write_buffer_size(), transport.bytes_written
    channel.write(piece)
    transport.expect(written_before, buffered + len(piece) - channel.get_write_buffer_size())


class Pump:
    """Sends up to `limit` bytes from `source`, and calls `on_sent` with the size of each batch.

    `done` has their number, which is less than `limit` if the source ended; it fails with ConnectionError if the source
    or the channel breaks. Driven by callbacks, not by a task: each step sends one batch, then waits for whichever is
    missing: the source's data, the agent's window, or room in the socket.
    """

    def __init__(
        self, source: ByteSource, destination: Destination, limit: int, on_sent: Callable[[int], None]
    ) -> None:
        self._source = source
        self._destination = destination
        self._channel = destination.channel
        self._transport = destination.transport
        self._bulk = destination.transport.bulk
        self._initial_window = destination.initial_window
        self._left = self._limit = limit
        self._on_sent = on_sent
        self._queued = False
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[int] = self._loop.create_future()
        self._bulk.pumps += 1

    def step(self) -> None:
        """Send a batch if that is possible now; either way, this is called again when the next one can be sent."""
        if not self._queued:
            self._queued = not self._transport.share.run(self._run_step)

    def fail(self, error: Exception) -> None:
        """End early with an error."""
        self._source.notify_readable(None)
        if not self.done.done():
            self.done.set_exception(error)

    def stop(self) -> None:
        """Send no more; called once."""
        self._bulk.pumps -= 1
        self._source.notify_readable(None)
        self.done.cancel()

    def _run_step(self) -> None:
        self._queued = False
        if self.done.done():
            return
        try:
            self._step()
        except Exception as error:  # noqa: BLE001 - in a callback of the loop: awaiting `done` raises it
            self.fail(error)

    def _step(self) -> None:
        if not self._bulk.idle():
            self._source.notify_readable(None)
            self._bulk.when_idle(self.step)
            return
        if self._channel.is_closing():
            raise ConnectionResetError("the channel is closed")
        state = send_state(self._channel) if self._transport.fast else None
        if state is None:
            self._send_through_asyncssh()
        elif state.window >= self._min_window():
            self._send_batch(state)
        else:
            self._source.notify_readable(None)
            await_window(self._channel)

    def _min_window(self) -> int:
        """Return the window from which a batch is sent.

        A sole pump needs little: waiting for more wastes throughput on a long path. Several pumps keep the connection
        busy together, so each waits for more: small pieces would fill the socket's buffer, which becomes writable again
        only when a third of it is free.
        """
        return max(
            1,
            min(
                BATCH_PACKETS * PACKET_DATA_BYTES,
                self._initial_window // SHARED_FRACTION,
                self._initial_window // SOLE_PUMP_FRACTION * self._bulk.pumps,
            ),
        )

    def _send_batch(self, state: SendState) -> None:
        batch = take_batch()
        count = self._source.receive_into(batch.room(min(self._left, state.window)))
        if count:
            account(self._channel, count)
            self._bulk.send(batch, batch.seal(state.seal, state.channel, count))
        else:
            return_batch(batch)
        self._continue(count)

    def _send_through_asyncssh(self) -> None:
        """Send a piece through asyncssh, once it has sent the one before."""
        if self._transport.exchanging_keys:
            self._source.notify_readable(None)
            self._loop.call_later(KEY_EXCHANGE_POLL_SECONDS, self.step)
            return
        if self._channel.get_write_buffer_size():  # asyncssh calls `resume_writing` when the agent's window has opened
            self._source.notify_readable(None)
            return
        piece = memoryview(bytearray(min(self._left, PACKET_DATA_BYTES)))
        count = self._source.receive_into((piece,))
        if count:
            send_through_asyncssh(self._destination, bytes(piece[:count]))
        self._continue(count)

    def _continue(self, count: int | None) -> None:
        """Arrange the next step after `count` bytes: 0 at the source's end, None if it has none now."""
        if count:
            self._left -= count
            self._on_sent(count)
        if count == 0 or not self._left:
            self._source.notify_readable(None)
            self.done.set_result(self._limit - self._left)
        elif self._bulk.idle():
            self._source.notify_readable(self.step)
        else:
            self._source.notify_readable(None)
            self._bulk.when_idle(self.step)
