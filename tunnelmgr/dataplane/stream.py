"""A TCP socket on the event loop, read directly into its reader's buffers and written without copies.

asyncio's transports allocate an object per receive, and read ahead; for bulk data, both cost more than the data itself.
Here nothing is read before it is asked for, so that data waits in the kernel, and then at the sender; and what the
kernel does not take at once is kept, not copied.

The loop may be asyncio's or uvloop's: only `add_reader`, `add_writer` and `sock_connect` are used.
"""

import asyncio
import ipaddress
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""Linger for no time: closing resets the connection (`socket(7)`, SO_LINGER)."""
BUFFERS_PER_CALL: Final = 64
"""Buffers passed to the kernel per call; it accepts up to 1024 (`sendmsg(2)`, IOV_MAX)."""


class Stream:
    """A connected socket.

    `on_lost` is called in a later iteration of the loop when a write finds the connection broken. What has arrived can
    still be read; the reader finds the end by reading.

    It has more attributes than other classes: reading, writing and ending share the socket's state, and one more object
    would cost a call per batch.
    """

    def __init__(
        self,
        connected: socket.socket,
        on_lost: Callable[[ConnectionError], None] = lambda _: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._on_drained: Callable[[], None] = _do_nothing
        self._reader: Callable[[], None] | None = None
        self._queue: deque[memoryview] = deque()
        self._turns: deque[Callable[[], None]] = deque()
        self._waiting: set[asyncio.Future[None]] = set()
        self._watching = False
        self._last: Callable[[], None] | None = None
        self.unsent = 0
        """Bytes that the kernel has not taken yet."""
        self.closed = False
        self.failure: ConnectionError | None = None
        """Why nothing more can be written, or read."""
        self.socket = connected
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # --- reading ---

    def notify_readable(self, reader: Callable[[], None] | None) -> None:
        """Call `reader` in each iteration of the loop in which there is something to read, until it is replaced."""
        if reader == self._reader or self.closed:
            return
        self._reader = reader
        if reader is None:
            self._loop.remove_reader(self.socket.fileno())
        else:
            self._loop.add_reader(self.socket.fileno(), reader)

    @property
    def silent(self) -> bool:
        """Whether the connection is open and there is nothing to read."""
        if self.closed or self.failure:
            return False
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def receive(self, limit: int) -> bytes | None:
        """Return up to `limit` bytes, `b""` at the end, None if nothing has arrived; raises ConnectionError."""
        try:
            return self.socket.recv(limit)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as lost:
            raise self._broken(lost) from lost

    def receive_into(self, buffers: Sequence[memoryview]) -> int | None:
        """Fill the buffers in order; returns how many bytes, 0 at the end, None if nothing has arrived.

        Raises ConnectionError.
        """
        try:
            return self.socket.recvmsg_into(buffers)[0]
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as lost:
            raise self._broken(lost) from lost

    # --- writing ---

    def notify_drained(self, on_drained: Callable[[], None]) -> None:
        """Call `on_drained` each time that the kernel has taken the last unsent byte."""
        self._on_drained = on_drained

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send now; what the kernel does not take is kept, not copied, so it must not change before `unsent` is 0."""
        self.put_off(data)
        if not self._watching:
            self.flush()

    def put_off(self, data: bytes | bytearray | memoryview) -> None:
        """Queue data for the next `flush`."""
        if data and not (self.closed or self.failure):
            self._queue.append(memoryview(data))
            self.unsent += len(data)

    def flush(self) -> None:
        """Send what is queued, as much as the kernel takes now and the remainder as soon as it takes more."""
        self._push()
        if (self._queue or self._turns) and not self._watching:
            self._watching = True
            self._loop.add_writer(self.socket.fileno(), self._on_writable)

    def when_drained(self, ready: Callable[[], None]) -> None:
        """Call `ready` once, when nothing is unsent; if several wait, one is called per iteration, in order.

        Only for a stream that has unsent bytes; `ready` is never called once the stream is closed or broken.
        """
        self._turns.append(ready)

    async def drained(self) -> None:
        """Wait until nothing is unsent, or the connection is over."""
        if not self.unsent:
            return
        drained: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(drained)
        self.when_drained(partial(_settle, drained))
        try:
            await drained
        finally:
            self._waiting.discard(drained)

    # --- ending ---

    def end(self) -> None:
        """Shut down our direction once everything is sent."""
        self._afterwards(self._shut)

    def close(self) -> None:
        """Close once everything is sent."""
        self.notify_readable(None)
        self._afterwards(self.abort)

    def abort(self, *, reset: bool = False) -> None:
        """Close at once and drop what is unsent; with `reset`, also what the kernel has buffered."""
        if self.closed:
            return
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.notify_readable(None)
        self.closed = True
        self._drop_unsent()
        self.socket.close()
        self._on_lost, self._on_drained = _do_nothing, _do_nothing  # they belong to owners that refer to this stream

    def _on_writable(self) -> None:
        self._push()
        if self._turns and not self._queue:
            self._turns.popleft()()
        # Writability is still watched while callers wait: the next one is called in the next iteration.
        if self._watching and not (self._queue or self._turns):
            self._watching = False
            self._loop.remove_writer(self.socket.fileno())

    def _push(self) -> None:
        queue = self._queue
        try:
            while queue:
                if len(queue) == 1:
                    self._took(self.socket.send(queue[0]))
                else:
                    self._took(self.socket.sendmsg(list(islice(queue, BUFFERS_PER_CALL))))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as lost:
            self._loop.call_soon(self._on_lost, self._broken(lost))
            self._drop_unsent()
            return
        self._on_drained()
        if self._last is not None and not self.closed:
            self._last()

    def _broken(self, error: OSError) -> ConnectionError:
        """Record and return the error as a ConnectionError, which ETIMEDOUT and EHOSTUNREACH are not."""
        lost = error if isinstance(error, ConnectionError) else ConnectionError(error.errno, error.strerror)
        self.failure = lost
        return lost

    def _drop_unsent(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self.socket.fileno())
        self._queue.clear()
        self._turns.clear()
        self.unsent = 0
        for drained in self._waiting:
            _settle(drained)

    def _took(self, count: int) -> None:
        queue = self._queue
        self.unsent -= count
        while count:
            first = queue[0]
            if count < len(first):
                queue[0] = first[count:]
                return
            count -= len(first)
            queue.popleft()

    def _afterwards(self, last: Callable[[], None]) -> None:
        if self._queue:
            self._last = last
        elif not self.closed:
            last()

    def _shut(self) -> None:
        self._last = None
        with suppress(OSError):  # the other side may be gone; reading finds that
            self.socket.shutdown(socket.SHUT_WR)


async def connect(host: str, port: int) -> socket.socket:
    """Connect to a literal address, or to the first address of a name that answers.

    Raises OSError with the last address's reason. The caller sets the deadline.
    """
    loop = asyncio.get_running_loop()
    refused: OSError | None = None
    for family, address in await _resolved(host, port):
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            connecting.setblocking(False)
            await loop.sock_connect(connecting, address)
        except OSError as failed:
            connecting.close()
            refused = failed
        except BaseException:
            connecting.close()
            raise
        else:
            return connecting
    raise refused or OSError(f"{host} has no address")


async def first_bytes(connected: socket.socket) -> None:
    """Wait until the other side has sent something, and leave it unread.

    Raises ConnectionError if the other side closes instead. The caller sets the deadline.
    """
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connected.fileno(), _settle, readable)
    try:
        await readable
    finally:
        loop.remove_reader(connected.fileno())
    if not connected.recv(1, socket.MSG_PEEK):
        raise ConnectionError("it closed the connection without sending anything")


async def _resolved(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[object, ...]]]:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]  # noqa: PLR2004 - the version of IP


def _do_nothing(*_: object) -> None:
    """Stand in for a callback that is not set."""


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
