"""The command line's client: its answers and its errors."""

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
    """Every method of the client returns the server's answer."""
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


async def test_a_refusal_is_an_error_with_the_daemons_message(client: ControlClient, ask: Ask) -> None:
    """A refusal raises ControlError with the daemon's message, and any text is sent as one agent's name."""
    with pytest.raises(ControlError, match="no agent matches"):
        await ask(client.agent, "../status?x=1#")
    with pytest.raises(ControlError, match="is not quarantined"):
        await ask(client.release, "builder-1", "")


async def test_an_invalid_configuration_is_raised_as_one(client: ControlClient, daemon: FakeDaemon, ask: Ask) -> None:
    """A refused reload raises ConfigError with every problem and the file."""
    daemon.bad = ConfigError(["a: missing", "b: missing"], file="tunnelmgr.toml")
    with pytest.raises(ConfigError) as bad:
        await ask(client.reload)

    assert bad.value.problems == ("a: missing", "b: missing")
    assert bad.value.file == "tunnelmgr.toml"


def test_a_missing_socket_means_that_no_daemon_runs(tmp_path: Path) -> None:
    """Without a socket the error says how to start the daemon."""
    with pytest.raises(DaemonNotRunningError, match="systemctl start tunnelmgr"):
        ControlClient(tmp_path / "none.sock").status()


def test_a_stale_socket_means_that_no_daemon_runs(tmp_path: Path) -> None:
    """A socket that a killed daemon left counts as no daemon."""
    place = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place))

    with pytest.raises(DaemonNotRunningError, match="refused"):
        ControlClient(place).status()


def test_a_socket_without_permission_is_not_mistaken_for_no_daemon(tmp_path: Path) -> None:
    """A missing permission is reported as such."""
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
async def test_an_invalid_answer_means_that_no_daemon_runs(tmp_path: Path, ask: Ask, answer: bytes) -> None:
    """An answer that is not HTTP and JSON raises an error of ours."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    place = tmp_path / "odd.sock"
    async with await asyncio.start_unix_server(talk, str(place)):
        with pytest.raises(DaemonNotRunningError):
            await ask(ControlClient(place).status)
