"""The receive window of a channel: how many unread bytes an agent may send (RFC 4254, section 5.2).

asyncssh reopens a window when it has passed data on, whether or not that data has been read: an agent that sends faster
than the registry takes would fill the memory. This window reopens as data is read. It starts small, so that channels
that are not read cost little, and grows while it is used, so that a long path reaches its full throughput.
"""

from typing import Final

INITIAL_WINDOW_BYTES: Final = 256 * 1024
MAX_WINDOW_BYTES: Final = 2 * 1024 * 1024
"""OpenSSH's window for its own forwards (channels.h)."""


class ReceiveWindow:
    """The size of one channel's window, and when to reopen it."""

    def __init__(self) -> None:
        self.size = INITIAL_WINDOW_BYTES
        self._read = 0

    def read(self, octets: int) -> int:
        """Count bytes that were read; returns by how many to reopen the window, 0 until half of it was read."""
        self._read += octets
        if self._read < self.size // 2:
            return 0
        growth = min(self.size, MAX_WINDOW_BYTES - self.size)
        room, self._read = self._read + growth, 0
        self.size += growth
        return room
