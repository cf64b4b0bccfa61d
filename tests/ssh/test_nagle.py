"""The no-op session that makes the agent's sshd set TCP_NODELAY."""

import asyncio

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, running_sshd
from tests.until import until
from tunnelmgr.ssh import client
from tunnelmgr.ssh.client import NO_OP_COMMAND, dial
from tunnelmgr.ssh.login import Login


async def test_one_no_op_command_is_requested_and_its_session_closed(
    key: asyncssh.SSHKey, host_key: asyncssh.SSHKey, login: Login
) -> None:
    """The session requests a no-op command without terminal or environment, and is closed afterwards."""
    asked: list[asyncssh.SSHServerProcess[str]] = []
    async with running_sshd(Sshd(host_key, key), process_factory=asked.append) as sshd:
        connection = await dial(sshd.spec(), login)
        await connection.disable_nagle()

        await until(lambda: asked and asked[0].channel.is_closing())
        assert [process.command for process in asked] == [NO_OP_COMMAND]
        assert asked[0].term_type is None
        assert not asked[0].env
        await until(lambda: not connection._conn._channels)
        assert not connection._transport.reader.acknowledge_at_once
        assert not connection.lost.is_set()
        connection.abort()
        await connection._conn.wait_closed()


async def test_an_agent_that_takes_no_sessions_keeps_its_tunnel(sshd: Sshd, login: Login) -> None:
    """If sshd refuses sessions, the connection stays, and everything is acknowledged at once."""
    connection = await dial(sshd.spec(), login)

    await connection.disable_nagle()

    assert connection._transport.reader.acknowledge_at_once
    assert not connection.lost.is_set()
    connection.abort()
    await connection._conn.wait_closed()


async def test_an_unanswered_session_is_closed_after_the_timeout(
    key: asyncssh.SSHKey, host_key: asyncssh.SSHKey, login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose request is not answered is closed from our side after the timeout."""
    monkeypatch.setattr(client, "NO_OP_SESSION_TIMEOUT", 0.05)
    started = asyncio.Event()

    class Silent(asyncssh.SSHServerSession[str]):
        async def exec_requested(self, command: str) -> bool:  # type: ignore[override] # to never answer
            raise NotImplementedError(command)

    async with running_sshd(Sshd(host_key, key), session_factory=Silent) as sshd:
        connection = await dial(sshd.spec(), login)
        server = sshd.connection
        monkeypatch.setattr(asyncssh.SSHServerChannel, "_process_exec_request", lambda *_: started.set())
        await connection.disable_nagle()

        assert started.is_set()
        await until(lambda: not server._channels)
        assert not connection.lost.is_set()
        connection.abort()
        await connection._conn.wait_closed()


async def test_a_lost_connection_raises_nothing(sshd: Sshd, login: Login) -> None:
    """On a lost connection, the request returns without an error."""
    connection = await dial(sshd.spec(), login)
    connection.abort()
    await connection._conn.wait_closed()

    await connection.disable_nagle()
