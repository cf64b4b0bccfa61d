"""The command line's client: its answers, and its errors in our words."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.control.fake_daemon import FakeDaemon
from tunnelmgr.control.client import ControlClient
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import ReleaseRequested, RetryRequested
from tunnelmgr.errors import ConfigError, ControlError, DaemonNotRunningError

Ask = Callable[..., Awaitable[Any]]


async def test_every_question_gets_its_answer(client: ControlClient, daemon: FakeDaemon, ask: Ask) -> None:
    """As the server gave it."""
    assert (await ask(client.status))["controller"] == "registry-1"
    assert len(await ask(client.agents)) == 4
    assert len(await ask(client.agents, departed=True)) == 5
    assert (await ask(client.agent, "builder-1"))["history"]
    assert (await ask(client.retry, "builder-2"))["retry"] == "now"
    assert (await ask(client.release, "builder-3", "all well"))["released"]
    assert (await ask(client.reload))["reloaded"]

    assert daemon.events == [
        RetryRequested(AgentId("static:builder-2"), os.geteuid()),
        ReleaseRequested(AgentId("static:builder-3"), "all well", os.geteuid()),
    ]


async def test_a_refusal_is_an_error_in_the_daemons_own_words(client: ControlClient, ask: Ask) -> None:
    """Whatever a person writes as an agent's name stays one name."""
    with pytest.raises(ControlError, match="no agent matches"):
        await ask(client.agent, "../status?x=1#")
    with pytest.raises(ControlError, match="is not quarantined"):
        await ask(client.release, "builder-1", "")


async def test_a_bad_configuration_comes_back_as_one(client: ControlClient, daemon: FakeDaemon, ask: Ask) -> None:
    """With each problem and the file, so that the command ends as it would with its own file."""
    daemon.bad = ConfigError(["a: missing", "b: missing"], file="tunnelmgr.toml")
    with pytest.raises(ConfigError) as bad:
        await ask(client.reload)

    assert bad.value.problems == ("a: missing", "b: missing")
    assert bad.value.file == "tunnelmgr.toml"


def test_no_socket_is_no_daemon(tmp_path: Path) -> None:
    """And the message says how to start one."""
    with pytest.raises(DaemonNotRunningError, match="systemctl start tunnelmgr"):
        ControlClient(tmp_path / "none.sock").status()


def test_a_stale_socket_is_no_daemon(tmp_path: Path) -> None:
    """One that was killed left it there."""
    place = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place))

    with pytest.raises(DaemonNotRunningError, match="refused"):
        ControlClient(place).status()


def test_a_socket_that_may_not_be_opened_is_not_mistaken_for_no_daemon(tmp_path: Path) -> None:
    """The daemon may well run; the user lacks a right."""
    place = tmp_path / "closed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        place.chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(ControlError, match="permission denied") as denied:
                ControlClient(place).status()
        finally:
            if root:
                os.seteuid(0)

    assert not isinstance(denied.value, DaemonNotRunningError)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"])
async def test_something_else_on_the_socket_is_no_daemon(tmp_path: Path, ask: Ask, answer: bytes) -> None:
    """Nonsense is an error of ours, never a trace."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    place = tmp_path / "odd.sock"
    async with await asyncio.start_unix_server(talk, str(place)):
        with pytest.raises(DaemonNotRunningError):
            await ask(ControlClient(place).status)
