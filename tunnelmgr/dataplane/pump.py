"""Bulk data from a socket to an agent, batch by batch: read into packets, sealed there, sent from there.

Driven by readiness, not by a task: what it does in one turn of the loop is one batch, and then it waits for whichever
of three things lacks, the source's data, the agent's window, or the line. Where `fastpath` knows no way, a piece goes
through asyncssh.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import asyncssh

from tunnelmgr.core.ports import Source
from tunnelmgr.dataplane.asyncssh_internals import SendState, account, await_window, send_state
from tunnelmgr.dataplane.ssh_packets import BATCH_PACKETS, PACKET_DATA_BYTES
from tunnelmgr.dataplane.transport import KEY_EXCHANGE_POLL_SECONDS, SshTransport, keep, spare

ALONE, SHARED = 32, 8
"""The part of the agent's window that has to be open before bulk data goes on: of sshd's, two or eight full packets."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where data goes: a channel, the line under it, and the agent's window when the channel was opened, in bytes."""

    channel: asyncssh.SSHTCPChannel[bytes]
    line: SshTransport
    widest: int


def send(destination: Destination, data: memoryview) -> int | None:
    """Send as much of `data` as one batch and the agent's window take, with all else of this turn of the loop.

    Returns how many bytes: 0 while the window is closed, None where it is for asyncssh to send them.
    """
    way = send_state(destination.channel) if destination.line.fast else None
    if way is None:
        return None
    if not way.window:
        await_window(destination.channel)
        return 0
    batch = spare()
    count = batch.fill(data[: way.window])
    account(destination.channel, count)
    destination.line.write(bytes(batch.buffer[: batch.seal(way.seal, way.channel, count)]))
    keep(batch)
    return count


def hand(destination: Destination, piece: bytes) -> None:
    """Have asyncssh send a piece, and the line know what should come of it; raises OSError once the channel is closed.

    What the agent's window has no room for stays in the channel's own buffer, and is not expected on the line.
    """
    channel, line = destination.channel, destination.line
    held, before = channel.get_write_buffer_size(), line.written
    channel.write(piece)
    line.expect(before, held + len(piece) - channel.get_write_buffer_size())


class Pump:
    """Carries up to `limit` bytes, and calls `carried` with the size of each batch.

    `done` has how many they were: fewer than `limit` where the source ended. It fails with ConnectionError where the
    source or the channel breaks.
    """

    def __init__(self, source: Source, destination: Destination, limit: int, carried: Callable[[int], None]) -> None:
        self._source = source
        self._destination = destination
        self._channel = destination.channel
        self._transport = destination.line
        self._widest = destination.widest
        self._left = self._limit = limit
        self._carried = carried
        self._queued = False
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[int] = self._loop.create_future()
        self._transport.pumps += 1

    def step(self) -> None:
        """Carry a batch if that can be done now, and have this called again once the next one can be carried."""
        if not self._queued:
            self._queued = not self._transport.share.run(self._go)

    def _go(self) -> None:
        self._queued = False
        if self.done.done():
            return
        try:
            self._step()
        except Exception as broken:  # noqa: BLE001 - a callback of the loop's: whoever waits for `done` raises it
            self.fail(broken)

    def fail(self, broken: Exception) -> None:
        """End it before its time."""
        self._source.notify_readable(None)
        if not self.done.done():
            self.done.set_exception(broken)

    def stop(self) -> None:
        """Carry nothing more; called once."""
        self._transport.pumps -= 1
        self._source.notify_readable(None)
        self.done.cancel()

    def _step(self) -> None:
        if not self._transport.idle():
            self._source.notify_readable(None)
            self._transport.when_idle(self.step)
            return
        if self._channel.is_closing():
            raise ConnectionResetError("the channel is closed")
        way = send_state(self._channel) if self._transport.fast else None
        if way is None:
            self._slowly()
        elif way.window >= self._enough():
            self._carry(way)
        else:
            self._source.notify_readable(None)
            await_window(self._channel)

    def _enough(self) -> int:
        """Return the window with which a batch is begun: what is waited for in vain, a long line carries less by.

        Several pumps keep a line busy together, so that each waits for more: in crumbs, what they have under way would
        fill the socket's buffer, and stand until a third of it is free.
        """
        return max(
            1,
            min(
                BATCH_PACKETS * PACKET_DATA_BYTES, self._widest // SHARED, self._widest // ALONE * self._transport.pumps
            ),
        )

    def _carry(self, way: SendState) -> None:
        batch = spare()
        count = self._source.receive_into(batch.room(min(self._left, way.window)))
        if count:
            account(self._channel, count)
            self._transport.send_batch(batch, batch.seal(way.seal, way.channel, count))
        else:
            keep(batch)
        self._go_on(count)

    def _slowly(self) -> None:
        """Carry a piece through asyncssh, once what it holds already is on its way."""
        if self._transport.exchanging_keys:
            self._source.notify_readable(None)
            self._loop.call_later(KEY_EXCHANGE_POLL_SECONDS, self.step)
            return
        if self._channel.get_write_buffer_size():  # asyncssh will say when the agent's window has opened
            self._source.notify_readable(None)
            return
        piece = memoryview(bytearray(min(self._left, PACKET_DATA_BYTES)))
        count = self._source.receive_into((piece,))
        if count:
            hand(self._destination, bytes(piece[:count]))
        self._go_on(count)

    def _go_on(self, count: int | None) -> None:
        if count:
            self._left -= count
            self._carried(count)
        if count == 0 or not self._left:
            self._source.notify_readable(None)
            self.done.set_result(self._limit - self._left)
        elif self._transport.idle():
            self._source.notify_readable(self.step)
        else:
            self._source.notify_readable(None)
            self._transport.when_idle(self.step)
