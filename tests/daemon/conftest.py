"""Fixtures of the daemon's tests: an agent's sshd, a minimal registry, and a configuration for both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ssh.ssh_server import Sshd, free_port, generate, running_sshd, running_tcp_server
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.ssh.key_files import load_key, make_key


@dataclass
class Site:
    """A folder with a configuration, and the parts that the configuration names."""

    folder: Path
    sshd: Sshd
    registry: Endpoint
    listen: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", free_port()))
    controller: list[str] = field(default_factory=list)
    trust: str = "tofu"
    group: str = "default"
    agents: tuple[str, ...] = ("builder-1",)
    more: str = ""
    state: str = ""
    name: str = "registry-1"

    @property
    def file(self) -> Path:
        """The configuration."""
        return self.folder / "tunnelmgr.toml"

    @property
    def default_state(self) -> str:
        """A state file in the folder."""
        return f"sqlite:///{self.folder}/state.db"

    @property
    def socket(self) -> Path:
        """The daemon's socket."""
        return self.folder / "control.sock"

    def write(self) -> Path:
        """Write the configuration and return its path."""
        agents = "".join(
            f'  [[source.agent]]\n  name = "{name}"\n  address = "127.0.0.1"\n  port = {self.sshd.port}\n'
            for name in self.agents
        )
        own = "\n".join(self.controller)
        self.file.write_text(f"""\
[controller]
name = "{self.name}"
state = "{self.state or self.default_state}"
socket = "{self.socket}"
drain = "5s"
{own}
[ssh]
key = "{self.folder}/id_ed25519"
connect_timeout = "5s"
probe_interval = "200ms"
[[forward]]
name = "registry"
listen = ["{self.listen}"]
target = "{self.registry}"
[[source]]
name = "office"
type = "static"
group = "{self.group}"
trust = ["{self.trust}"]
{agents}
{self.more}
""")
        return self.file


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the version check as a registry, and refuse uploads as one that is read-only."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        status = b"405 Method Not Allowed" if head.startswith(b"POST") else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" % status)
        if b"connection: close" in head.lower():
            return


@asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    """Run an agent and a registry, and write a configuration for them."""
    make_key(folder / "id_ed25519", "test")
    sshd = Sshd(generate(), load_key(folder / "id_ed25519"))
    async with running_tcp_server(_answer) as registry, running_sshd(sshd):
        site = Site(folder, sshd, registry)
        sshd.permits = {site.listen}
        site.write()
        yield site


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """Run an agent and a registry, with a home of their own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with running_site(tmp_path) as site:
        yield site
