"""The window that an agent gets on a channel: how much it may send that is not read yet (RFC 4254, section 5.2).

asyncssh opens a window again when it has handed data on, whether or not more waits behind: an agent that sends faster
than the registry takes would fill the memory. Here it opens by what has been read. It begins small, so that channels on
which nobody reads cost little, and grows while it is used, so that a long path carries as much as it can.
"""

from typing import Final

INITIAL_WINDOW_BYTES: Final = 256 * 1024
MAX_WINDOW_BYTES: Final = 2 * 1024 * 1024
"""Bytes; as much as OpenSSH gives for its own forwards (channels.h)."""


class ReceiveWindow:
    """How far one channel's window is open."""

    def __init__(self) -> None:
        self.size = INITIAL_WINDOW_BYTES
        self._read = 0

    def read(self, octets: int) -> int:
        """Count bytes that were read; returns how many more the agent may send now, 0 until half of it is used."""
        self._read += octets
        if self._read < self.size // 2:
            return 0
        growth = min(self.size, MAX_WINDOW_BYTES - self.size)
        room, self._read = self._read + growth, 0
        self.size += growth
        return room
