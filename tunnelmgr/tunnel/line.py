"""The TCP connection under an SSH connection, with the back-pressure that asyncssh does not pass on.

- asyncssh ignores `pause_writing` from its transport, and puts aside without bound what is written while keys are
  exchanged, which the other side may begin and never end. So whoever writes waits on the line instead.
- asyncssh works off whatever it is given in one go, and a read may hold thousands of messages: it is given a piece a
  turn of the loop, so that the other tunnels have theirs in between, and no more than its `Allowance`. What waits is
  left in the socket, and so with the agent.
- asyncssh answers requests whether or not the answers are read: while too many wait, nothing more is read.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence

from tunnelmgr.errors import UnreachableError
from tunnelmgr.tunnel.allowance import Allowance
from tunnelmgr.tunnel.path import tune

SEND_AHEAD = 1024 * 1024
"""Bytes that may wait for the socket before writers are held, for all channels of a connection together."""
ANSWERS_AHEAD = 16 * 1024 * 1024
"""Bytes that may wait for the socket before nothing more is read; channels alone do not come near it."""
SMALLEST, LARGEST = 512, 32 * 1024
"""Bytes of a piece."""
QUICK, SLOW = 0.0003, 0.001
"""Seconds that a piece should take: one that is quicker makes the next larger, one that is slower smaller."""
RECHECK = 0.05
"""Seconds between two looks whether the agent reads its answers."""
EXCHANGE_LOOK = 0.01
"""Seconds between two looks whether a key exchange is over: asyncssh tells nobody."""


class Line(asyncio.Protocol):
    """Stands between the socket and asyncssh's protocol and passes everything on, at a pace that all can bear."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._allowance = Allowance(self._loop.time())
        self._transport: asyncio.Transport | None = None
        self._backlog = bytearray()
        self._piece = SMALLEST
        self._next: asyncio.Handle | None = None
        self.overdrawn = False
        self._room = asyncio.Event()
        self._room.set()
        self._lost = False

    async def writable(self) -> None:
        """Wait until enough of what was written is on its way; a lost line never blocks."""
        await self._room.wait()
        while self._exchanging_keys:  # ended by the probe where the other side never ends it
            await asyncio.sleep(EXCHANGE_LOOK)
            await self._room.wait()

    @property
    def _exchanging_keys(self) -> bool:
        return not self._lost and not getattr(self.protocol, "_kex_complete", True)

    def carried(self, octets: int) -> None:
        """Credit the agent with bytes that a channel carried."""
        self._allowance.earn(octets)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what may wait in the transport."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            transport.set_write_buffer_limits(high=SEND_AHEAD)
        self.protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass on what arrived, piece by piece."""
        self._backlog += data
        if self._next is None:
            self._pass_on()

    def eof_received(self) -> bool | None:
        """Pass on the end; it comes after all else, since nothing is read while a piece waits."""
        return self.protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let waiting writers go; they find their channels closed."""
        self._lost = True
        self._forget()
        self._room.set()
        self.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """Hold the writers."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Let the writers go on."""
        self._room.set()

    # --- pieces ---

    def _pass_on(self) -> None:
        """Pass on one piece, and see when the next one's turn is."""
        self._next = None
        if self._backlog and not self._answers_wait:
            piece = bytes(self._backlog[: self._piece])
            del self._backlog[: len(piece)]
            # The thread's own time: another process on a busy machine is not the agent's to pay for.
            began = time.thread_time()
            self.protocol.data_received(piece)
            self._settle(time.thread_time() - began)
        if self._transport is None or self._transport.is_closing():
            self._forget()
            return
        rest = self._rest()
        if not self._backlog and not rest:
            self._transport.resume_reading()
            return
        self._transport.pause_reading()
        self._next = self._loop.call_later(rest, self._pass_on) if rest else self._loop.call_soon(self._pass_on)

    def _settle(self, took: float) -> None:
        self._allowance.spend(took)
        if took < QUICK:
            self._piece = min(LARGEST, self._piece * 2)
        elif took > SLOW:
            self._piece = max(SMALLEST, int(self._piece * SLOW / took))

    def _rest(self) -> float:
        rest = self._allowance.rest(self._loop.time())
        self.overdrawn = rest > 0
        return max(rest, RECHECK) if self._answers_wait else rest

    @property
    def _answers_wait(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() > ANSWERS_AHEAD

    def _forget(self) -> None:
        """Drop what waits: there is nobody left to have it."""
        self._backlog.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None


class Dialer:
    """Opens the line to the first address that answers; handed to asyncssh as its `tunnel`, whose form it has."""

    def __init__(self, addresses: Sequence[str], patience: float = 10.0) -> None:
        self._addresses = addresses
        self._patience = patience
        self.line: Line | None = None
        self.reached = ""

    async def create_connection(
        self, factory: Callable[[], asyncio.Protocol], _host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect, trying each address in order of preference.

        Raises UnreachableError with the last address's reason. The caller sets the deadline for all of it; each
        address has its share, so that one that swallows packets leaves time for the next.
        """
        loop = asyncio.get_running_loop()
        refused = UnreachableError("the agent", "it has no address")
        for address in self._addresses:
            try:
                async with asyncio.timeout(self._patience / len(self._addresses)):
                    transport, line = await loop.create_connection(lambda: Line(factory()), address, port)
            except OSError as failed:
                refused = UnreachableError(f"{address} port {port}", _reason(failed))
                continue
            tune(transport.get_extra_info("socket"))
            self.line, self.reached = line, address
            return transport, line.protocol
        raise refused


def _reason(failed: OSError) -> str:
    """Say it in the system's words: asyncio puts its own in their place, with the address once more."""
    if isinstance(failed, TimeoutError):
        return "no answer in time"
    if failed.errno and not isinstance(failed, socket.gaierror):
        return os.strerror(failed.errno)
    return failed.strerror or str(failed)
