"""From an agent's addresses to a line: each is tried in turn, and its socket is tuned."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from tunnelmgr.errors import UnreachableError
from tunnelmgr.stream import connect
from tunnelmgr.tunnel.line import Line
from tunnelmgr.tunnel.path import tune


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
        refused = UnreachableError("the agent", "it has no address")
        for address in self._addresses:
            try:
                async with asyncio.timeout(self._patience / len(self._addresses)):
                    connected = await connect(address, port)
            except OSError as failed:
                refused = UnreachableError(f"{address} port {port}", _reason(failed))
                continue
            tune(connected)
            self.line, self.reached = Line(factory, connected), address
            return self.line, self.line.protocol
        raise refused


def _reason(failed: OSError) -> str:
    """Say it in the system's words: asyncio puts its own in their place, with the address once more."""
    if isinstance(failed, TimeoutError):
        return "no answer in time"
    if failed.errno and not isinstance(failed, socket.gaierror):
        return os.strerror(failed.errno)
    return failed.strerror or str(failed)
