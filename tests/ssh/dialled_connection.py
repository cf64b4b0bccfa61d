"""A connection for the duration of a test, and owners for its listeners."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tunnelmgr.core.tunnel import TunnelSpec
from tunnelmgr.dataplane.channel import NoOwner
from tunnelmgr.ssh.client import ChannelRefused, SshConnection, dial
from tunnelmgr.ssh.login import Login


@asynccontextmanager
async def dialled(spec: TunnelSpec, login: Login) -> AsyncIterator[SshConnection]:
    """Dial, and drop the connection at the end."""
    connection = await dial(spec, login)
    try:
        yield connection
    finally:
        connection.abort()
        await connection._conn.wait_closed()


def sockets() -> set[str]:
    """Return the sockets of this process."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


class AdmitAll(NoOwner):
    """Admits every channel, and serves none."""

    def admit_channel(self) -> None:
        """Admit it."""


class Decline(NoOwner):
    """Declines every channel."""

    def admit_channel(self) -> None:
        """Decline it."""
        raise ChannelRefused("full")
