"""Ending a connection that is over here and still stands on the agent, which holds the registry's port for it.

After a silent cut the agent's sshd does not know that its client is gone, and refuses the port to the next connection
until it finds out. TCP has a way to tell it: a SYN from the very address and port of the old connection. The agent's
kernel answers it with what it expects next, our kernel knows nothing of such a connection and says so with a RST that
fits, and the old connection is reset at once (RFC 9293, section 3.5.1, "Half-Open Connections"; RFC 5961, section 4).
That helps where a NAT or a firewall on the way has lost its state, or where the path was away for a while. Where the
path swallows all packets of the old connection, nothing is changed.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple

PATIENCE: Final = 0.5
"""Seconds that the exchange may take; it takes one round trip."""
_RESET: Final = struct.pack("ii", 1, 0)
"""A linger of no time: a connection that comes about is reset at once (`socket(7)`, SO_LINGER)."""


class Ends(NamedTuple):
    """A TCP connection, by both its addresses as the socket module has them."""

    ours: tuple[str, int]
    theirs: tuple[str, int]


async def reset_half_open(connection: Ends) -> None:
    """Have the agent's kernel reset a connection that is over here; does nothing where that cannot be tried.

    Our address and port must be free, as they are once the connection was reset here.
    """
    family = socket.AF_INET6 if ":" in connection.ours[0] else socket.AF_INET
    with socket.socket(family) as again, suppress(OSError):  # a TimeoutError is one of them
        again.setblocking(False)
        again.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        again.bind(connection.ours)
        async with asyncio.timeout(PATIENCE):
            # It connects where nothing of the old connection is left on the agent.
            await asyncio.get_running_loop().sock_connect(again, connection.theirs)
