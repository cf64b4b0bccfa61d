"""The lab itself works: its machines with plain OpenSSH, its stand-in for EC2 with plain boto3."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from lab.ec2 import Ec2Service, host_key_console
from lab.images import digest_of, make_image, skopeo_copy
from lab.network import Lab
from lab.processes import LabError, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lab.agents import LabAgent
    from lab.processes import Process

pytestmark = pytest.mark.acceptance

LISTEN = ("127.0.0.1:5000", "[::1]:5000")
RESTRICTED = "restrict,port-forwarding," + ",".join(f'permitlisten="{one}",permitopen="{one}"' for one in LISTEN)
IMAGE = "docker://localhost:5000/team/app:1"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Open a lab without agents."""
    with Lab(tmp_path / "lab") as lab:
        yield lab


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Make the controller's key pair and return the file of the private key."""
    place = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place], check=True, timeout=10)
    return place


def authorized(key: Path) -> str:
    """Return the agent's authorized_keys."""
    return f"{RESTRICTED} {key.with_suffix('.pub').read_text()}"


def dial(lab: Lab, agent: LabAgent, key: Path, host_key: str) -> Process:
    """Dial the agent with plain OpenSSH, as the controller would; trust only this host key."""
    known = key.with_name(f"known_hosts_{time.monotonic_ns()}")
    known.write_text(f"{agent.ip} {host_key}\n")
    options = {
        "UserKnownHostsFile": known,
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "ExitOnForwardFailure": "yes",
        "ConnectTimeout": 3,
        "ServerAliveInterval": 1,
        "ServerAliveCountMax": 2,
    }
    flags = [f"-o{name}={value}" for name, value in options.items()]
    forwards = [f"-R{one}:127.0.0.1:5000" for one in LISTEN]
    return lab.controller.popen(["ssh", "-F", "none", "-N", "-i", str(key), *flags, *forwards, f"tunnel@{agent.ip}"])


def await_tunnel(agent: LabAgent) -> None:
    """Wait until the agent's sshd has both listeners."""
    until(lambda: agent.listeners(5000) == ["127.0.0.1", "::1"], "the tunnel is open", timeout=5)


def test_an_image_travels_between_two_agents_through_plain_openssh(lab: Lab, key: Path, tmp_path: Path) -> None:
    """An image pushed by one agent is pulled by another with the same digest; the registry listens on loopback only."""
    registry = lab.registry(lab.controller, tmp_path / "registry")
    agents = [lab.agent(f"a{number}", f"10.77.0.1{number}", authorized(key)) for number in (1, 2)]
    for agent in agents:
        dial(lab, agent, key, agent.host_key)
        await_tunnel(agent)
    image = make_image(tmp_path / "image", "app", layers=3, kib_per_layer=256)

    pushed = skopeo_copy(agents[0], image, IMAGE)
    pulled = skopeo_copy(agents[1], IMAGE, f"oci:{tmp_path}/pulled:1")

    assert pushed.returncode == 0, pushed.stderr
    assert pulled.returncode == 0, pulled.stderr
    assert digest_of(None, image) == digest_of(agents[1], IMAGE) == digest_of(None, f"oci:{tmp_path}/pulled:1")
    assert "/v2/team/app/manifests/1" in registry.log()
    assert lab.controller.listeners(5000) == ["127.0.0.1"]


def test_a_strange_key_is_refused_at_a_reused_address(lab: Lab, key: Path) -> None:
    """The address of a killed machine is free for another at once, and strict host key checking refuses the other."""
    first = lab.agent("first", "10.77.0.11", authorized(key))
    tunnel = dial(lab, first, key, first.host_key)
    await_tunnel(first)

    first.kill()
    second = lab.agent("second", "10.77.0.11", authorized(key))

    assert dial(lab, second, key, first.host_key).wait(5) == 255
    dial(lab, second, key, second.host_key)
    await_tunnel(second)
    assert tunnel.wait(5) == 255


def test_each_fault_ends_an_open_tunnel(lab: Lab, key: Path) -> None:
    """Lost packets, resets, a frozen session and a restarted sshd each end the tunnel; a new one can be opened."""
    agent = lab.agent("a1", "10.77.0.11", authorized(key))
    packets = agent.faults
    faults = [packets.drop, packets.reject, packets.reset_connections, agent.pause_sshd_sessions, agent.restart_sshd]

    for fault in faults:
        tunnel = dial(lab, agent, key, agent.host_key)
        await_tunnel(agent)
        fault()
        assert tunnel.wait(6) == 255
        packets.heal()
        agent.resume_sshd_sessions()
        agent.restart_sshd()

    assert "Accepted publickey for tunnel" in agent.log()


def test_a_machine_can_lack_ipv6_share_a_key_and_be_misconfigured(lab: Lab, key: Path) -> None:
    """An agent can have no ::1, a given host key, and sshd options that override those of the lab."""
    agent = lab.agent(
        "a1",
        "10.77.0.11",
        authorized(key),
        host_key=key,
        sshd_options=["GatewayPorts yes", "ListenAddress 10.77.0.11"],
        ipv6=False,
    )

    assert agent.host_key == " ".join(key.with_suffix(".pub").read_text().split()[:2])
    assert agent.listeners(22) == ["10.77.0.11"]
    assert agent.run(["cat", "/proc/sys/net/ipv6/conf/lo/disable_ipv6"]).stdout.strip() == "1"
    assert agent.run(["id", "-u", "tunnel"]).stdout.strip() == "4242"


def test_nothing_remains_after_a_failed_setup(tmp_path: Path) -> None:
    """An agent that cannot boot raises an error with the reason, and closing the lab still removes everything."""
    with Lab(tmp_path / "lab") as lab:
        prefix = lab.controller.name.removesuffix("-1-controller")
        with pytest.raises(LabError, match="nonsense"):
            lab.agent("a1", "10.77.0.11", "", sshd_options=["nonsense yes"])
        sleeper = lab.controller.popen(["sleep", "600"])

    named = subprocess.run(["ip", "netns", "list"], check=True, timeout=10, capture_output=True, text=True).stdout
    assert f"{prefix}-" not in named
    assert sleeper.poll() is not None


BOTO = """
import boto3, botocore.config, sys
config = botocore.config.Config(retries={"mode": "standard", "total_max_attempts": 1}, read_timeout=5)
ec2 = boto3.client("ec2", endpoint_url=sys.argv[1], config=config)
def call(function):
    try:
        print(function())
    except ec2.exceptions.ClientError as error:
        print(error.response["Error"]["Code"])
def states():
    pages = ec2.get_paginator("describe_instances").paginate()
    instances = pages.search("Reservations[].Instances[]")
    return [(one.get("PrivateIpAddress"), one["State"]["Name"]) for one in instances]
for line in sys.stdin:
    call(lambda: eval(line))
    sys.stdout.flush()
"""


class Boto:
    """A boto3 client on the controller's machine that evaluates one expression per line."""

    def __init__(self, lab: Lab, cloud: Ec2Service) -> None:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", BOTO, cloud.endpoint]
        self.process = lab.controller.popen(argv, env=cloud.environment, stdin=pipe, stdout=pipe)

    def ask(self, expression: str) -> str:
        """Evaluate the expression and return what it prints."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(expression.encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()


def test_the_cloud_launches_terminates_forgets_and_fails_on_command(lab: Lab, tmp_path: Path) -> None:
    """Plain boto3 sees the effect of each command of the stand-in for EC2."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
    with Ec2Service(lab.controller, 5556, tmp_path / "cloud") as cloud, contextlib.ExitStack() as stack:
        boto = Boto(lab, cloud)
        stack.callback(boto.process.end)
        first = cloud.launch("10.77.0.11", {"role": "ci"})
        assert "Output" not in boto.ask(f"ec2.get_console_output(InstanceId='{first}', Latest=True)")
        cloud.console(first, host_key_console([key]))
        assert f"\\r\\n{key} root@" in boto.ask(f"repr(ec2.get_console_output(InstanceId='{first}')['Output'])")
        cloud.state(first, "pending")
        assert boto.ask("states()") == "[('10.77.0.11', 'pending')]"

        cloud.terminate(first)
        second = cloud.launch("10.77.0.11")
        assert boto.ask("states()") == "[(None, 'terminated'), ('10.77.0.11', 'running')]"

        cloud.fault("DescribeInstances", [("RequestLimitExceeded", 503), ("UnauthorizedOperation", 403)])
        assert [boto.ask("states()") for _ in range(2)] == ["RequestLimitExceeded", "UnauthorizedOperation"]
        cloud.page_size(1)
        cloud.fault("DescribeInstances", [("InternalError", 500)], forever=True, later_pages=True)
        assert boto.ask("states()") == boto.ask("states()") == "InternalError"
        cloud.clear_faults()
        cloud.fault("DescribeInstances", [("", 200)], stall=0.5)
        started = time.monotonic()
        assert "running" in boto.ask("states()")
        assert time.monotonic() - started > 0.5
        cloud.forget(first)
        assert boto.ask("states()") == "[('10.77.0.11', 'running')]"
        assert "InvalidInstanceID.NotFound" in boto.ask(f"ec2.get_console_output(InstanceId='{first}')")
        assert cloud.calls("GetConsoleOutput") == 3
        assert second != first
