"""Jenkins' EC2 agents that end during a build, or are stopped and started: what the plugin does next finds a tunnel."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.agents import LabAgent
from lab.ec2 import host_key_console
from lab.jenkins.channel import Channel, ChannelClosedError
from lab.jenkins.connection import Connection
from lab.jenkins.launchers import Ec2Launcher
from lab.jenkins.machine import prepare
from lab.network import Lab
from lab.processes import until
from tests.acceptance.conftest import CloudField
from tunnelmgr.hooks import render

pytestmark = pytest.mark.acceptance

AGENT = "curl -fsS http://localhost:5000/.well-known/tunnelmgr"
PREFIX = "/usr/local/bin/tunnelmgr-wait --soft &&"
PULL = "skopeo inspect --tls-verify=false docker://localhost:5000/team/app:1"


@dataclass
class Jenkins:
    """Jenkins' machine, and the instances that it has launched."""

    field: CloudField
    connection: Connection
    homes: Path
    logs: Path
    instances: list[str] = field(default_factory=list)

    def boot(self, ip: str, disk: str, host_key: Path | None = None) -> LabAgent:
        """Boot a machine named builder-1 at an address, with the home on a disk."""
        agent = self.field.boot("builder-1", ip, host_key=host_key)
        prepare(agent, self.homes / disk, self.connection.key.with_suffix(".pub").read_text().strip())
        return agent

    def list_instance(self, agent: LabAgent) -> str:
        """List a machine as an instance with its console, and return its id."""
        instance = self.field.listed(agent).removeprefix("ec2:")
        self.field.cloud.console(instance, host_key_console([agent.host_key]))
        self.instances.append(instance)
        return instance

    def launch(self, ip: str, disk: str, prefix: str = "") -> tuple[Channel, str]:
        """Launch Jenkins' agent by the EC2 plugin; return its channel and its log."""
        log = self.logs / f"{len(list(self.logs.iterdir()))}.log"
        log.touch()
        connection = Connection(self.connection.jenkins, self.connection.key, ip)
        launcher = Ec2Launcher(render("ec2"), agent_command_prefix=prefix, remote_fs=str(self.homes / disk))
        return launcher.launch(connection, log), log.read_text()


@pytest.fixture
def jenkins(cloud_field: CloudField, lab: Lab, tmp_path: Path) -> Iterator[Jenkins]:
    """Run a controller that believes EC2's console, without an instance yet."""
    machine = lab.machine("jenkins", "10.77.0.60")
    key = tmp_path / "jenkins-key"
    machine.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    logs = tmp_path / "launches"
    logs.mkdir()
    cloud_field.believe("console")
    with tempfile.TemporaryDirectory(prefix="homes-") as homes:
        Path(homes).chmod(0o755)
        cloud_field.controller.start()
        yield Jenkins(cloud_field, Connection(machine, key, ""), Path(homes), logs)


def test_after_a_spot_reclaim_the_next_instance_of_the_same_name_gets_a_tunnel(jenkins: Jenkins) -> None:
    """A build whose instance ends is cut; it runs again on another machine with this name, as its own agent."""
    first = jenkins.boot("10.77.0.31", "first")
    reclaimed = jenkins.list_instance(first)
    channel, _ = jenkins.launch(first.ip, "first")
    identity = channel.sh(AGENT)[1]
    jenkins.field.push(first)

    with ThreadPoolExecutor(1) as executor:
        building = executor.submit(channel.sh, "touch ~/building; sleep 60")
        until((jenkins.homes / "first/building").exists, "the build is in progress")
        first.kill()
        jenkins.field.cloud.terminate(reclaimed)
        with pytest.raises(ChannelClosedError):
            building.result(30)
    second = jenkins.boot("10.77.0.32", "second")
    instance = jenkins.list_instance(second)
    channel, log = jenkins.launch(second.ip, "second")
    status, output = channel.sh(PULL)

    assert f"ec2:{reclaimed}" in identity
    assert "is ready" in log
    assert f"ec2:{instance}" in channel.sh(AGENT)[1]
    assert (status, '"Digest": "sha256:' in output) == (0, True), output
    channel.close()


def test_after_a_stop_and_start_the_prefix_waits_for_the_tunnel_to_the_new_address(jenkins: Jenkins) -> None:
    """The plugin does not run the init script again, since its mark is on the disk; the command prefix waits."""
    machine = jenkins.boot("10.77.0.33", "disk")
    instance = jenkins.list_instance(machine)
    channel, first = jenkins.launch(machine.ip, "disk")
    channel.close()
    key = jenkins.logs.parent / "host-key"
    key.write_text(machine.run(["cat", "/etc/ssh/lab_host_key"], check=True).stdout)
    key.chmod(0o600)

    machine.kill()
    jenkins.field.cloud.state(instance, "stopped")
    jenkins.field.controller.wait(f"ec2:{instance}", lambda agent: not agent["present"], "the instance is stopped")
    machine = jenkins.boot("10.77.0.34", "disk", host_key=key)
    with ThreadPoolExecutor(1) as executor:
        launching = executor.submit(jenkins.launch, machine.ip, "disk", PREFIX)
        until(lambda: machine.run(["pgrep", "-f", "tunnelmgr-wait"]).returncode == 0, "the prefix waits", timeout=30)
        jenkins.field.cloud.move(instance, machine.ip)
        channel, again = launching.result(60)

    assert (first.count("is ready"), again.count("is ready")) == (1, 1)
    assert f"ec2:{instance}" in channel.sh(AGENT)[1]
    channel.close()


def test_after_hibernation_the_prefix_waits_until_the_old_session_has_freed_the_port(jenkins: Jenkins) -> None:
    """A hibernated machine wakes with its sshd sessions, and that of the lost tunnel still has the registry's port."""
    machine, woken_ip = jenkins.boot("10.77.0.35", "asleep"), "10.77.0.36"
    instance = jenkins.list_instance(machine)
    channel, first = jenkins.launch(machine.ip, "asleep")
    channel.close()

    machine.faults.drop()
    machine.pause_sshd_sessions()
    jenkins.field.cloud.state(instance, "stopped")
    jenkins.field.controller.wait(f"ec2:{instance}", lambda agent: not agent["present"], "the instance is stopped")
    machine.run(["ip", "address", "del", f"{machine.ip}/24", "dev", "eth0"], check=True)
    machine.run(["ip", "address", "add", f"{woken_ip}/24", "dev", "eth0"], check=True)
    machine.faults.heal()
    machine.resume_sshd_sessions()
    held = machine.listeners(5000)
    jenkins.field.cloud.move(instance, woken_ip)
    channel, again = jenkins.launch(woken_ip, "asleep", PREFIX)

    assert held == ["127.0.0.1", "::1"], "the old session has the port"
    assert (first.count("is ready"), again.count("is ready")) == (1, 1)
    assert f"ec2:{instance}" in channel.sh(AGENT)[1]
    channel.close()
