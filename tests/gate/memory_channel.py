"""A channel in memory, whose agent's side is the test."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tunnelmgr.core.ports import ByteSource
from tunnelmgr.dataplane.fair_queue import Share, fair_queue


class MemoryChannel:
    """A `Channel` in memory; the test acts as the agent's side."""

    def __init__(self) -> None:
        self.checkpoints = 0
        self.incoming: asyncio.Queue[bytes | ConnectionError] = asyncio.Queue()
        self.outgoing = bytearray()
        self.ended = False
        self.closed = False
        self.aborted = False
        self.stalled = False
        self.gone = False
        self.changed = asyncio.Condition()
        self.largest_write = 0
        self.draining = asyncio.Event()
        self.takes: Callable[[bytes], bool] | None = None
        self.seen: list[bytes | ConnectionError] = []

    def scheduled(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Run the coroutine's steps in turn with those of others, as a tunnel's channel does."""
        return Share(fair_queue(asyncio.get_running_loop())).scheduled(coroutine)

    async def checkpoint(self) -> None:
        """Let other tasks run."""
        self.checkpoints += 1
        await asyncio.sleep(0)

    async def wanted(self) -> bool:
        """Wait until the agent sends something, or the tunnel drains."""
        if not self.seen:
            async with asyncio.TaskGroup() as waits:
                sent = waits.create_task(self.incoming.get(), name="sent")
                draining = waits.create_task(self.draining.wait(), name="draining")
                await asyncio.wait((sent, draining), return_when=asyncio.FIRST_COMPLETED)
                draining.cancel()
                if not sent.done():
                    sent.cancel()
                    return False
            self.seen.append(sent.result())
        return self.seen[0] != b""

    def intercept(self, takes: Callable[[bytes], bool] | None) -> None:
        """Offer to `takes` what the test sends from now on."""
        self.takes = takes

    async def read(self) -> bytes:
        """Return what the agent sent."""
        arrived = self.seen.pop() if self.seen else await self.incoming.get()
        if isinstance(arrived, ConnectionError):
            raise arrived
        if not arrived:
            self.incoming.put_nowait(b"")
        return arrived

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Give the agent data."""
        if self.gone or self.aborted:
            raise ConnectionResetError
        if self.stalled:
            await asyncio.get_running_loop().create_future()
        self.largest_write = max(self.largest_write, len(data))
        async with self.changed:
            self.outgoing += data
            self.changed.notify_all()

    async def send_from(self, source: ByteSource, limit: int, on_sent: Callable[[int], None]) -> int:
        """Give the agent the bytes of a source, in pieces of 64 KiB."""
        room, left = memoryview(bytearray(65536)), limit
        readable = asyncio.Event()
        source.notify_readable(readable.set)
        try:
            while left and (count := source.receive_into((room[: min(left, 65536)],))) != 0:
                if count is None:
                    readable.clear()
                    await readable.wait()
                    continue
                await self.write(bytes(room[:count]))
                left -= count
                on_sent(count)
        finally:
            source.notify_readable(None)
        return limit - left

    def write_eof(self) -> None:
        """Remember that nothing more follows."""
        self.ended = True

    def close(self) -> None:
        """Remember the close."""
        self.closed = True

    def abort(self) -> None:
        """Remember the abort."""
        self.aborted = True

    def send(self, data: bytes) -> None:
        """Send as the agent."""
        if self.takes is None or not self.takes(data):
            self.incoming.put_nowait(data)

    def end(self) -> None:
        """End the agent's direction."""
        self.incoming.put_nowait(b"")

    def reset(self) -> None:
        """Lose the agent."""
        self.incoming.put_nowait(ConnectionResetError())
