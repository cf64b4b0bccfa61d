"""On an agent that was prepared as documented, the controller's key can only open its listeners."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import asyncssh
import pytest
import yaml

from lab.agents import LabAgent
from lab.processes import run, until
from tests.acceptance.conftest import Field
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import TunnelSpec
from tunnelmgr.hooks import cloud_init
from tunnelmgr.ssh import dialer
from tunnelmgr.ssh.client import dial
from tunnelmgr.ssh.login import Login

pytestmark = pytest.mark.acceptance

PERMISSIVE = """\
Include /etc/ssh/sshd_config.d/*.conf
HostKey /etc/ssh/lab_host_key
UsePAM no
PermitRootLogin no
Subsystem sftp internal-sftp
AllowAgentForwarding yes
AllowStreamLocalForwarding yes
X11Forwarding yes
PermitTTY yes
PermitTunnel yes
GatewayPorts yes
LogLevel DEBUG1
PidFile none
"""
"""An sshd_config that allows everything."""
CERTIFIED = """\
TrustedUserCAKeys /etc/ssh/user_ca.pub
Match User tunnel
    PermitListen 127.0.0.1:5000 [::1]:5000
    PermitOpen 127.0.0.1:5000 [::1]:5000
Match all
"""
"""The settings that docs/operations.md adds for agents that accept a certificate instead of the key."""
OPEN_TO_ALL = "/run/open-to-all"
PLANTED = f"{OPEN_TO_ALL}/planted"
SOCKET = "/run/service.sock"
SERVICE = f"""
import os, socket
with socket.socket(socket.AF_UNIX) as service:
    service.bind("{SOCKET}")
    os.chmod("{SOCKET}", 0o777)
    service.listen()
    while True:
        service.accept()
"""
"""A service on the agent that every user may connect to."""
ALLOWED = {"listen 127.0.0.1:5000", "listen ::1:5000", "connect 127.0.0.1:5000", "connect ::1:5000"}


@pytest.fixture
def agent(field: Field) -> LabAgent:
    """Boot an agent of a permissive image, prepared by the user-data that `tunnelmgr hook cloud-init` prints."""
    agent = field.boot("builder")
    agent.run(["tee", "/etc/ssh/sshd_config"], feed=PERMISSIVE, check=True)
    for file in yaml.safe_load(cloud_init(field.controller.authorized_keys))["write_files"]:
        if "encoding" not in file:
            place = Path(file["path"])
            agent.run(["mkdir", "-p", str(place.parent)], check=True)
            agent.run(["tee", str(place)], feed=file["content"], check=True)
            agent.run(["chmod", file["permissions"], str(place)], check=True)
    agent.run(["install", "-d", "-m", "1777", OPEN_TO_ALL], check=True)
    agent.restart_sshd()
    return agent


class Thief:
    """An attacker with the controller's key, logged in on an agent."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        self.got: set[str] = set()

    async def attempt(self, what: str, trying: Callable[[], Awaitable[object]]) -> None:
        """Try something, and record it if it is granted."""
        with suppress(asyncssh.Error, asyncssh.ChannelListenError, OSError):
            async with asyncio.timeout(10):
                if await trying() is not False:
                    self.got.add(what)

    async def everything(self) -> set[str]:
        """Try everything that a key might do, and return what was granted."""
        connection = self._connection
        for host, port in (("127.0.0.1", 5000), ("::1", 5000), ("127.0.0.1", 5001), ("0.0.0.0", 5000), ("", 0)):  # noqa: S104
            listen = partial(connection.forward_remote_port, host, port, "127.0.0.1", 5000)
            await self.attempt(f"listen {host}:{port}", listen)
        for host, port in (("127.0.0.1", 5000), ("::1", 5000), ("127.0.0.1", 22), ("10.77.0.1", 5000)):
            await self.attempt(f"connect {host}:{port}", partial(self._connects, host, port))
        await self.attempt("unix listen", lambda: connection.start_unix_server(lambda: True, PLANTED))
        await self.attempt("unix connect", lambda: connection.open_unix_connection(SOCKET))
        await self.attempt("tun", connection.open_tun)
        await self.attempt("tap", connection.open_tap)
        await self.attempt("exec", self._runs)
        await self.attempt("shell", lambda: self._runs(None))
        await self.attempt("pty", lambda: connection.create_process(term_type="xterm"))
        await self.attempt("x11", lambda: connection.create_process("id", x11_forwarding=True, x11_display="nowhere:1"))
        await self.attempt("sftp", connection.start_sftp_client)
        await self.attempt("environment", lambda: self._runs("id", env={"LD_PRELOAD": PLANTED}))
        return self.got

    async def _connects(self, host: str, port: int) -> None:
        _, writer = await self._connection.open_connection(host, port)
        writer.close()

    async def _runs(self, command: str | None = "id", **options: object) -> bool:
        """Report whether a command, or a shell, ran."""
        done = await self._connection.run(command, input="id\n", **options)
        return "uid=" in str(done.stdout)


async def logged_in(field: Field, agent: LabAgent, *keys: Path) -> asyncssh.SSHClientConnection:
    """Log in with the stolen key."""
    sock = await asyncio.to_thread(field.lab.controller.connect, agent.ip, 22)
    return await asyncssh.connect(
        sock=sock,
        username="tunnel",
        client_keys=[str(keys[0]) if len(keys) == 1 else tuple(map(str, keys))],
        known_hosts=None,
        config=None,
    )


async def test_a_stolen_key_holds_the_listeners_and_nothing_else(field: Field, agent: LabAgent) -> None:
    """A stolen key gives no commands, files, terminals, unix sockets, devices, or access to other ports or machines."""
    service = agent.popen([sys.executable, "-c", SERVICE])
    await asyncio.to_thread(until, lambda: agent.run(["test", "-S", SOCKET]).returncode == 0, "the service listens")
    async with await logged_in(field, agent, field.controller.folder / "id_ed25519") as connection:
        got = await Thief(connection).everything()
    service.end()

    assert got == ALLOWED
    assert agent.run(["test", "-e", PLANTED]).returncode != 0


def test_openssh_gets_neither_an_agent_nor_files_with_the_key(field: Field, agent: LabAgent) -> None:
    """`ssh -A` is refused silently, as the protocol requires, and sftp and scp get no server."""
    key = field.controller.folder / "id_ed25519"
    options = ["-F", "none", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    for program in (["sftp", "-b", "-"], ["ssh", "-s"], ["ssh", "-A"]):
        where = [f"tunnel@{agent.ip}", *(["sftp"] if "-s" in program else ["id"] if "-A" in program else [])]
        argv = ["ssh-agent", program[0], *program[1:], *options, *where]
        done = field.lab.controller.run(argv, feed="ls /\n", timeout=20)
        assert done.returncode != 0
        assert not any(word in done.stdout for word in ("uid=", "etc", "bin"))

    assert "agent forwarding disabled" in agent.log()


async def test_a_session_request_still_ends_nagles_delay(field: Field, agent: LabAgent) -> None:
    """Sshd accepts the controller's session request, which runs nothing, although a command is forced."""
    trust = HostTrust(Method.PINNED, (agent.host_key,))
    spec = TunnelSpec(AgentId("static:b"), "1", "b", "ci", (agent.ip,), 22, (), trust)
    login = Login("tunnel", asyncssh.read_private_key(field.controller.folder / "id_ed25519"), 5.0)

    async def from_the_controller(host: str, port: int) -> object:
        return await asyncio.to_thread(field.lab.controller.connect, host, port)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialer, "connect", from_the_controller)
        connection = await dial(spec, login)
    try:
        await connection.disable_nagle()
        assert not connection._transport.reader.acknowledge_at_once
        assert "Starting session: forced-command" in agent.log()  # what has sshd set TCP_NODELAY
    finally:
        await connection.close(2.0)


async def test_a_stolen_certificate_gives_no_more_than_the_key(field: Field, agent: LabAgent) -> None:
    """A certificate carries no limits, so sshd's settings limit it as the key."""
    folder = field.controller.folder
    for name in ("user_ca", "other"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    public = str(folder / "other.pub")
    run(["ssh-keygen", "-q", "-s", str(folder / "user_ca"), "-I", "controller", "-n", "tunnel", public], check=True)
    agent.run(["tee", "/etc/ssh/user_ca.pub"], feed=(folder / "user_ca.pub").read_text(), check=True)
    agent.run(["tee", "/etc/ssh/sshd_config.d/20-certificate.conf"], feed=CERTIFIED, check=True)
    agent.restart_sshd()

    async with await logged_in(field, agent, folder / "other", folder / "other-cert.pub") as connection:
        got = await Thief(connection).everything()

    assert got == ALLOWED


def test_the_controller_brings_up_an_agent_that_was_prepared_so(field: Field, agent: LabAgent) -> None:
    """The documented settings allow everything that a tunnel needs."""
    field.up(agent)

    assert field.reaches(agent)
