"""Resetting a half-open connection: over on this side, but still established on the agent, whose sshd holds our port.

After a silent network cut, the agent's sshd does not know that its client is gone, and refuses the port to the next
connection until it finds out. TCP can notify it: a SYN from exactly the address and port of the old connection. The
agent's kernel answers with the sequence number that it expects next, our kernel has no such connection and answers with
a matching RST, and the old connection is reset at once (RFC 9293, section 3.5.1, "Half-Open Connections"; RFC 5961,
section 4). This works if a NAT or firewall on the path has lost its state, or if the path was down for a while. If the
path drops all packets of the old connection, nothing changes.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple

RESET_TIMEOUT: Final = 0.5
"""Seconds for the exchange, which takes one round trip."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""Linger for no time: if a connection is established, closing resets it (`socket(7)`, SO_LINGER)."""


class Ends(NamedTuple):
    """A TCP connection by both its addresses, each in the socket module's form."""

    ours: tuple[str, int]
    theirs: tuple[str, int]


async def reset_half_open(connection: Ends) -> None:
    """Have the agent's kernel reset a connection that is over on this side; does nothing if that cannot be tried.

    Our address and port must be free, which they are after a reset on this side.
    """
    family = socket.AF_INET6 if ":" in connection.ours[0] else socket.AF_INET
    with socket.socket(family) as again, suppress(OSError):  # a TimeoutError is one of them
        again.setblocking(False)
        again.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        again.bind(connection.ours)
        async with asyncio.timeout(RESET_TIMEOUT):
            # It connects if nothing of the old connection is left on the agent.
            await asyncio.get_running_loop().sock_connect(again, connection.theirs)
