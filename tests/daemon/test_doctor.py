"""What `doctor` finds at an agent's sshd that is hostile, or set up wrongly."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, forward, generate, running_sshd
from tunnelmgr.config import Config, ForwardConfig, SshConfig
from tunnelmgr.control.client import ControlClient
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.daemon import doctor
from tunnelmgr.daemon.doctor import Declining, Step, examine
from tunnelmgr.ssh.client import dial
from tunnelmgr.ssh.login import Login


class Daemon:
    """A daemon that knows one agent, which has no tunnel."""

    def __init__(self, sshd: Sshd) -> None:
        self._agent = {
            "agent": "static:builder-1",
            "name": "builder-1",
            "source": "office",
            "group": "ci",
            "address": "127.0.0.1",
            "port": sshd.port,
            "present": True,
            "phase": "down",
            "message": "",
            "trust": "pinned",
            "evidence": "",
            "fingerprints": [fingerprint(sshd.host_key)],
            "forwards": [],
        }

    def status(self) -> dict[str, Any]:
        """Return the state of the controller."""
        return {"controller": "registry-1", "version": "1", "sources": [{"name": "office", "ok": True}]}

    def agent(self, _: str) -> dict[str, Any]:
        """Return the agent."""
        return self._agent


@pytest.fixture
async def sshd() -> AsyncIterator[Sshd]:
    """Run an agent's sshd."""
    async with running_sshd(Sshd(generate(), generate())) as sshd:
        yield sshd


@pytest.fixture
def login_key(sshd: Sshd, tmp_path: Path) -> Path:
    """Write the controller's key to a file."""
    file = tmp_path / "id_ed25519"
    file.touch(mode=0o600)
    file.write_bytes(sshd.accepts.export_private_key("openssh"))
    return file


async def steps_at(sshd: Sshd, login_key: Path, endpoint: Endpoint) -> dict[str, Step]:
    """Examine the agent, which is to listen at one address, and return the steps by their names."""
    config = Config(
        ssh=SshConfig.model_validate({"key": str(login_key)}),
        forward=[ForwardConfig.model_validate({"name": "db", "listen": [str(endpoint)], "target": "127.0.0.1:9"})],
    )
    async with asyncio.timeout(30):
        return {step.step: step async for step in examine(config, cast("ControlClient", Daemon(sshd)), "builder-1")}


async def test_a_listener_that_is_exposed_to_the_network_is_no_success(sshd: Sshd, login_key: Path) -> None:
    """An sshd with `GatewayPorts yes` accepts the listener, and offers it to everybody."""
    sshd.exposes, endpoint = True, forward().listen[0]

    step = (await steps_at(sshd, login_key, endpoint))[f"listen on {endpoint}"]

    assert (step.result, "to the agent's whole network" in step.message) == ("failed", True)
    assert "GatewayPorts no" in step.cure
    assert sshd.cancelled[0] == endpoint


async def test_a_client_that_connects_during_the_test_of_a_listener_does_not_end_it(sshd: Sshd) -> None:
    """The client's connection is declined, and the SSH connection stays."""
    endpoint = forward().listen[0]
    connection = await dial(sshd.spec(forward()), Login("tunnel", sshd.accepts, 5.0))
    assert await connection.listen(endpoint, Declining()) is not None

    with pytest.raises(asyncssh.ChannelOpenError, match="the listener is a test"):
        await sshd.connection.open_connection(endpoint.host, endpoint.port)

    assert await connection.excess() is not None
    connection.abort()


async def test_an_sshd_that_does_not_answer_is_not_waited_for_without_end(
    sshd: Sshd, login_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for a listener that gets no answer is a failed step."""
    monkeypatch.setattr(doctor, "ANSWER_TIMEOUT", 0.2)
    endpoint, held = forward().listen[0], asyncio.Event()

    async def wait(*_: object) -> None:
        await held.wait()

    monkeypatch.setattr("tests.ssh.ssh_server._Server.server_requested", wait)

    step = (await steps_at(sshd, login_key, endpoint))[f"listen on {endpoint}"]
    held.set()

    assert (step.result, step.message) == ("failed", "the agent's sshd does not answer within 0.2 s")
