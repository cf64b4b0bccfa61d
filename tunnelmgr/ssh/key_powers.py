"""What the login key could do on an agent beyond what a tunnel needs.

A key line without limits goes unnoticed, because everything works. So it is tried: each request below is refused by an
sshd that is set up as `tunnelmgr init` prints it, and does nothing on one that is not.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Final

import asyncssh

from tunnelmgr.ssh.faults import FAULTS

TIMEOUT: Final = 5.0
"""Seconds in which all tries must be answered."""
HIGH_PORTS: Final = range(49152, 65536)
"""Dynamic ports (RFC 6335, section 6), of which any user may listen on one."""
UNUSED_PORT: Final = 1
"""A port on which no agent listens: an sshd that permits the connection fails to make it."""
SOCKETS: Final = ("/run/systemd/journal/stdout", "/run/dbus/system_bus_socket")
"""Sockets that a machine with systemd has, and to which any user may connect; nothing is sent to them."""
LIMIT: Final = 4096
"""Bytes of an answer that are kept."""
SFTP_INIT: Final = b"\x00\x00\x00\x05\x01\x00\x00\x00\x03"
"""SSH_FXP_INIT of version 3 (draft-ietf-secsh-filexfer-02, section 4)."""
SFTP_VERSION: Final = 2
"""SSH_FXP_VERSION, the type of a server's answer; it comes after the answer's length."""
TYPE_AT: Final = 4


class Power(StrEnum):
    """Something that the key should not be able to do."""

    LISTEN = "listen on other ports"
    CONNECT = "connect to other ports"
    UNIX = "connect to unix sockets"
    COMMAND = "run commands"
    SFTP = "read and write files by sftp"


async def excess(conn: asyncssh.SSHClientConnection) -> tuple[str, ...]:
    """Return what the key could do, in the order of `Power`; raises TimeoutError if a try is not answered in time."""
    tries = {
        Power.LISTEN: _listens,
        Power.CONNECT: _connects,
        Power.UNIX: _connects_to_unix,
        Power.COMMAND: _runs,
        Power.SFTP: _serves_sftp,
    }
    found = await asyncio.gather(*(_succeeds(one, conn) for one in tries.values()))
    if None in found:
        raise TimeoutError
    return tuple(power.value for power, succeeds in zip(tries, found, strict=True) if succeeds)


async def _succeeds(
    one: Callable[[asyncssh.SSHClientConnection], Awaitable[bool]], conn: asyncssh.SSHClientConnection
) -> bool | None:
    """Return whether the agent lets us do it, None if it does not answer."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return await one(conn)
    except TimeoutError:
        return None
    except FAULTS:
        return False


async def _listens(conn: asyncssh.SSHClientConnection) -> bool:
    port = random.choice(HIGH_PORTS)  # noqa: S311 - any port will do
    listener = await conn.create_server(lambda _host, _port: Refusing(), "127.0.0.1", port)
    listener.close()
    return True


async def _connects(conn: asyncssh.SSHClientConnection) -> bool:
    """Return whether a channel opens, or fails for another reason than a prohibition (RFC 4254, section 5.1)."""
    try:
        channel, _ = await conn.create_connection(asyncssh.SSHTCPSession, "127.0.0.1", UNUSED_PORT)
    except asyncssh.ChannelOpenError as refused:
        return refused.code == asyncssh.OPEN_CONNECT_FAILED
    channel.abort()
    return True


async def _connects_to_unix(conn: asyncssh.SSHClientConnection) -> bool:
    """Return whether a channel opens; OpenSSH gives the same reason for a prohibition and for a missing socket."""
    for path in SOCKETS:
        with suppress(asyncssh.ChannelOpenError):
            channel, _ = await conn.create_unix_connection(asyncssh.SSHUNIXSession, path)
            channel.abort()
            return True
    return False


async def _runs(conn: asyncssh.SSHClientConnection) -> bool:
    """Return whether a command runs: a forced command or nologin answers something else."""
    word = secrets.token_hex(8)
    answer = Answer(lambda data: word.encode() in data)
    channel, _ = await conn.create_session(lambda: answer, f"echo {word}", encoding=None)
    return await answer.expected(channel)


async def _serves_sftp(conn: asyncssh.SSHClientConnection) -> bool:
    answer = Answer(lambda data: data[TYPE_AT : TYPE_AT + 1] == bytes([SFTP_VERSION]))
    channel, _ = await conn.create_session(lambda: answer, subsystem="sftp", encoding=None)
    channel.write(SFTP_INIT)
    return await answer.expected(channel)


class Refusing(asyncssh.SSHTCPSession[bytes]):
    """A session of a listener that is closed at once."""

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """End it."""
        chan.abort()


class Answer(asyncssh.SSHClientSession[bytes]):
    """A session that collects a short answer, until it is as expected or ends."""

    def __init__(self, is_expected: Callable[[bytes], bool]) -> None:
        self._is_expected = is_expected
        self._data = b""
        self._over = asyncio.Event()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002 - asyncssh's form
        """Keep what has come, of an answer that may be endless only the beginning."""
        self._data = (self._data + data)[:LIMIT]
        if self._is_expected(self._data) or len(self._data) == LIMIT:
            self._over.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncssh's form
        """Note the end."""
        self._over.set()

    async def expected(self, channel: asyncssh.SSHClientChannel[bytes]) -> bool:
        """Return whether the answer is as expected, and end the session; the caller sets the deadline."""
        try:
            await self._over.wait()
        finally:
            channel.abort()
        return self._is_expected(self._data)
