"""The checks before a start; a failed one says what to do."""

import asyncio
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.daemon.conftest import Site
from tests.observability.collectors import SyslogReceiver
from tests.ssh.ssh_server import free_port
from tunnelmgr.config import AuditForwardConfig, Config, SourceConfig, load
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.daemon import checks
from tunnelmgr.daemon.checks import Finding, check
from tunnelmgr.dataplane.fast_path import FastPath
from tunnelmgr.errors import DiscoveryError
from tunnelmgr.ssh.key_files import make_key

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIAGkZnzWcWDkVGJCSmtWFcZOcmXJ9vSVP6sHJqMF5kP"
AGENT = Agent(AgentId("ec2:i-1"), "1", "cloud", "ci", "one", ("192.0.2.7",), 22)


def named(findings: list[Finding], name: str) -> Finding:
    """Return the only finding of this name."""
    (found,) = [finding for finding in findings if finding.check == name]
    return found


@dataclass
class Cloud:
    """A source that answers as the test wants, and can read consoles or lacks the permission."""

    config: SourceConfig
    snapshot: Snapshot | DiscoveryError
    lacking: str | None = None

    def discover(self) -> Snapshot:
        """Answer."""
        if isinstance(self.snapshot, DiscoveryError):
            raise self.snapshot
        return self.snapshot

    def console_output(self, agent: Agent) -> str:
        """Return a console."""
        return agent.id

    def console_permission(self, agent: Agent) -> str | None:
        """Return the missing permission."""
        assert agent == AGENT
        return self.lacking


def with_cloud(site: Site, monkeypatch: pytest.MonkeyPatch, cloud: Cloud) -> Config:
    """Return the site's configuration with this source instead of its own."""
    monkeypatch.setattr(checks, "build", lambda _config: cloud)
    return load(site.file).model_copy(update={"source": [cloud.config]})


CLOUD = SourceConfig(name="cloud", type="ec2", trust=[Method.CONSOLE])


# --- the whole ---


async def test_a_healthy_site_has_no_failure(site: Site) -> None:
    """Every check of a healthy site is listed, and none has failed."""
    findings = await check(load(site.file))

    assert {finding.result for finding in findings} <= {"ok", "note"}
    assert {"ssh key", "state", "socket", "registry", "groups", "source office"} <= {
        finding.check for finding in findings
    }
    assert "SHA256:" in named(findings, "ssh key").message


@pytest.mark.parametrize(
    ("path", "result", "message"),
    [
        (FastPath(active=True), "ok", "on: bulk data bypasses asyncssh"),
        (FastPath(active=False, reason="asyncssh 3.0 is not proved"), "note", "off: asyncssh 3.0 is not proved; "),
    ],
)
async def test_the_fast_path_is_reported(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: FastPath, result: str, message: str
) -> None:
    """A fast path that is off is a note with the reason, not a failure."""
    monkeypatch.setattr(checks, "fast_path_status", lambda: path)

    found = named(await check(load(site.file)), "fast path")

    assert found.result == result
    assert found.message.startswith(message)


# --- keys and places ---


async def test_a_key_that_others_can_read_fails(site: Site) -> None:
    """A private key that others can read fails, as ssh(1) would refuse it."""
    os.chmod(site.folder / "id_ed25519", 0o640)  # noqa: PTH101 - a mistake on purpose

    found = named(await check(load(site.file)), "ssh key")
    assert (found.result, "chmod 600" in found.message) == ("failed", True)


async def test_a_file_that_is_not_a_key_fails(site: Site) -> None:
    """`check` names the file that is not a private key."""
    (site.folder / "id_ed25519").write_text("no key")

    found = named(await check(load(site.file)), "ssh key")
    assert found.result == "failed"
    assert "id_ed25519" in found.message


async def test_a_path_that_cannot_be_written_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` reports paths that its user cannot write; root can write everywhere, so `os.access` is replaced here."""
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != site.folder)

    findings = await check(load(site.file))
    for name in ("state", "socket"):
        found = named(findings, name)
        assert (found.result, str(site.folder) in found.message) == ("failed", True)


# --- the registry ---


async def test_a_pull_through_cache_is_checked_under_its_own_name(site: Site) -> None:
    """`check` tells a cache that does not answer from the registry, which does."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        cache = f"127.0.0.1:{unused.getsockname()[1]}"
    listen = "127.0.0.1:5001"
    site.more = f'[[forward]]\nname = "mirror"\nlisten = ["{listen}"]\ntarget = "{cache}"\nupstream = "proxy"\n'
    findings = await check(load(site.write()))

    assert named(findings, "registry").result == "ok"
    assert named(findings, "pull-through cache").message.startswith(f"{cache}: Connection refused")


async def test_an_unreachable_registry_fails(site: Site) -> None:
    """A registry that does not answer fails, and its exposure is not checked."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    site.registry = replace(site.registry, port=port)
    findings = await check(load(site.write()))

    assert named(findings, "registry").result == "failed"
    assert "Connection refused" in named(findings, "registry").message
    assert "registry on loopback only" not in {finding.check for finding in findings}


async def test_a_registry_for_pushes_that_does_not_answer_fails(site: Site) -> None:
    """The registry that takes a replica's pushes is checked too, under a name of its own."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        away = f"127.0.0.1:{gone.getsockname()[1]}"
    text = (
        site.write()
        .read_text()
        .replace(f'target = "{site.registry}"', f'target = "{site.registry}"\npush_target = "{away}"')
    )
    site.file.write_text(text)

    found = named(await check(load(site.file)), "registry for pushes")

    assert found.result == "failed"
    assert f"{away}: Connection refused" in found.message


async def test_a_registry_that_asks_for_a_password_fails_and_its_exposure_is_still_checked(site: Site) -> None:
    """The default configuration of Debian's registry answers 401: `check` names `auth`, which has to go."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "0.0.0.0", 0) as server:  # noqa: S104 - what is to be found
        site.registry = replace(site.registry, port=server.sockets[0].getsockname()[1])
        findings = await check(load(site.write()))

    registry = named(findings, "registry")
    assert registry.result == "failed"
    assert "remove `auth` from the registry's configuration" in registry.message
    assert "start" not in registry.message
    exposed = named(findings, "registry on loopback only")
    assert (exposed.result, "0.0.0.0" in exposed.message) == ("failed", True)  # noqa: S104


async def test_a_registry_on_another_machine_is_not_on_loopback(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that is not loopback fails, regardless of what listens on this machine."""

    async def well(_target: object) -> None:
        return None

    monkeypatch.setattr(checks, "registry_error", well)
    site.registry = replace(site.registry, host="192.0.2.1")

    found = named(await check(load(site.write())), "registry on loopback only")
    assert found.result == "failed"
    assert f"{site.registry} is not loopback" in found.message


async def test_a_registry_in_another_network_is_a_note(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the registry's listener cannot be seen from here, its exposure is a note."""
    monkeypatch.setattr(checks, "is_loopback_only", lambda _target: None)

    assert named(await check(load(site.file)), "registry on loopback only").result == "note"


# --- collisions ---


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - what is to be found
async def test_a_listen_address_in_use_on_this_machine_fails(site: Site, host: str) -> None:
    """If an agent is this machine, its sshd could not listen on a port that is in use here."""
    with socket.create_server((host, 0)) as taken:
        site.listen = replace(site.listen, port=taken.getsockname()[1])
        findings = await check(load(site.write()))

    found = named(findings, "forward")
    assert found.result == "failed"
    assert str(site.listen) in found.message


async def test_a_port_in_use_here_is_free_on_another_machine(site: Site) -> None:
    """A forward on another machine may listen on the port that the registry has here."""
    text = site.file.read_text().replace(f'listen = ["{site.listen}"]', f'listen = ["{site.registry}"]')
    site.file.write_text(text.replace('address = "127.0.0.1"', 'address = "192.0.2.7"'))

    assert "forward" not in {finding.check for finding in await check(load(site.file))}


# --- sources and trust ---


async def test_a_source_that_gives_no_answer_fails_with_its_reason(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that does not answer fails with its reason, and the other sources are still checked."""
    reason = "eu-west-1: UnauthorizedOperation; allow ec2:DescribeInstances"
    cloud = Cloud(CLOUD, DiscoveryError("cloud", reason))

    assert named(await check(with_cloud(site, monkeypatch, cloud)), "source cloud") == Finding(
        "source cloud", "failed", reason
    )


@pytest.mark.parametrize(("agents", "message"), [(0, "0 agents"), (1, "1 agent"), (2, "2 agents")])
async def test_the_agents_of_a_source_are_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch, agents: int, message: str
) -> None:
    """The number of agents that a source has found is shown in the singular or the plural."""
    found = frozenset(replace(AGENT, id=AgentId(f"ec2:i-{number}")) for number in range(1, agents + 1))
    config = with_cloud(site, monkeypatch, Cloud(CLOUD, Snapshot(found), lacking="unused"))
    monkeypatch.setattr(Cloud, "console_permission", lambda _cloud, _agent: None)

    assert named(await check(config), "source cloud") == Finding("source cloud", "ok", message)


async def test_a_partial_answer_of_a_source_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that answers in part fails with the part that failed."""
    cloud = Cloud(CLOUD, Snapshot(frozenset({AGENT}), failures=("eu-west-1: throttled",)))

    found = named(await check(with_cloud(site, monkeypatch, cloud)), "source cloud")
    assert (found.result, found.message) == ("failed", "eu-west-1: throttled")


@pytest.mark.parametrize(("lacking", "result"), [(None, "ok"), ("allow ec2:GetConsoleOutput", "failed")])
async def test_the_permission_to_read_consoles_is_checked(
    site: Site, monkeypatch: pytest.MonkeyPatch, lacking: str | None, result: str
) -> None:
    """The permission is checked with one agent's console, and a missing one is named."""
    cloud = Cloud(CLOUD, Snapshot(frozenset({AGENT})), lacking)

    found = named(await check(with_cloud(site, monkeypatch, cloud)), "trust of cloud")
    assert found.result == result
    assert (lacking or "can be read") in found.message


async def test_tofu_is_noted(site: Site) -> None:
    """`check` notes that tofu trusts the first key that it sees."""
    found = named(await check(load(site.file)), "trust of office")

    assert found.result == "note"
    assert "first host key" in found.message


async def test_a_method_that_a_source_cannot_serve_is_noted(site: Site) -> None:
    """A trust method that a source cannot serve is a note, such as console for a static source."""
    site.trust = 'console", "tofu'
    messages = [finding.message for finding in await check(load(site.write())) if finding.check == "trust of office"]

    assert any("console has no evidence" in message for message in messages)


async def test_a_pinned_agent_without_a_key_fails(site: Site) -> None:
    """An agent that only a missing host_key could identify fails."""
    site.trust = "pinned"
    found = named(await check(load(site.write())), "trust of office")
    assert (found.result, "builder-1" in found.message) == ("failed", True)

    site.more = f'  host_key = "{KEY}"'
    assert "trust of office" not in {finding.check for finding in await check(load(site.write()))}


# --- the kernel ---


async def test_a_missing_kernel_setting_is_a_note(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel setting that makes tunnels slower is a note, not a failure."""
    monkeypatch.setattr(checks, "missing_kernel_settings", lambda: iter(["small buffers: sysctl"]))

    assert named(await check(load(site.file)), "path to agents") == Finding(
        "path to agents", "note", "small buffers: sysctl"
    )


# --- the audit log ---


async def test_the_audit_log_its_key_and_its_collectors_are_checked(site: Site, tmp_path: Path) -> None:
    """`check` names the key's fingerprint, and each collector that cannot be reached or verified."""
    receiver = SyslogReceiver(tmp_path)
    receiver.start()
    make_key(tmp_path / "audit_ed25519", "audit")
    config = load(site.file)
    forwards = [
        AuditForwardConfig(name="good", url=receiver.url, ca_file=receiver.ca),
        AuditForwardConfig(name="unverified", url=receiver.url),
        AuditForwardConfig(name="away", url=f"https://127.0.0.1:{free_port()}/audit"),
    ]
    settings = {"audit": tmp_path / "audit.jsonl", "audit_key": tmp_path / "audit_ed25519"}
    controller = config.controller.model_copy(update=settings)

    findings = await check(config.model_copy(update={"controller": controller, "audit_forward": forwards}))
    receiver.stop()

    assert named(findings, "audit log") == Finding("audit log", "ok", str(tmp_path / "audit.jsonl"))
    assert named(findings, "audit key").result == "ok"
    assert "SHA256:" in named(findings, "audit key").message
    assert named(findings, "audit collector good") == Finding("audit collector good", "ok", receiver.url)
    assert "certificate verify failed" in named(findings, "audit collector unverified").message
    assert named(findings, "audit collector away").message.endswith("/audit: Connection refused")


async def test_a_key_that_cannot_seal_fails_the_check(site: Site, tmp_path: Path) -> None:
    """A file that is not a private key is a failure of the check."""
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    config = load(site.file)
    settings = {"audit": tmp_path / "none/audit.jsonl", "audit_key": wrong}

    findings = await check(config.model_copy(update={"controller": config.controller.model_copy(update=settings)}))

    assert named(findings, "audit key").result == "failed"
    assert "not a private key" in named(findings, "audit key").message
