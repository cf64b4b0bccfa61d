"""EC2's consoles are read as text, and only whole."""

from collections.abc import Callable

import pytest

from lab.ec2 import Ec2Service, host_key_console
from tests.discovery.ec2.answers import DENIED
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.discovery.ec2 import Ec2Source
from tunnelmgr.errors import HostKeyUnknownError

# --- the console ---


def test_the_console_is_read_as_text(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """The console's output is decoded once."""
    cloud.console(launch(), "line one\r\nline two\r\n")
    jenkins = source()
    (agent,) = jenkins.discover().agents

    assert jenkins.console_output(agent) == "line one\r\nline two\r\n"


def test_a_console_without_output_yet_is_empty(launch: Callable[..., str], source: Callable[..., Ec2Source]) -> None:
    """The API leaves out the output of an empty console."""
    launch()
    jenkins = source()
    (agent,) = jenkins.discover().agents

    assert jenkins.console_output(agent) == ""


@pytest.mark.parametrize("code", ["UnsupportedOperation", "InvalidParameterCombination"])
def test_without_latest_output_that_of_the_boot_is_read(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source], code: str
) -> None:
    """Only Nitro instances have the latest output."""
    cloud.console(launch(), "as it booted")
    jenkins = source()
    (agent,) = jenkins.discover().agents
    cloud.fault("GetConsoleOutput", [(code, 400)])

    assert jenkins.console_output(agent) == "as it booted"


def test_a_console_that_may_have_lost_its_beginning_is_refused(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """EC2 keeps the last 64 KB, so a program could scroll the true block away and print another one."""
    instance = launch()
    jenkins = source()
    (agent,) = jenkins.discover().agents
    forged = "[    0.000000] Linux version 6.1.0\r\n" + host_key_console(["ssh-ed25519 AAAA"])

    for full in ("x" * (64_000 - len(forged)) + forged, "ö" * 31_000 + forged):
        cloud.console(instance, full)
        with pytest.raises(HostKeyUnknownError, match="EC2 keeps the last 64 KB only"):
            jenkins.console_output(agent)

    cloud.console(instance, "x" * (60_000 - len(forged)) + forged)
    assert jenkins.console_output(agent).endswith(forged)


def test_a_missing_permission_to_read_consoles_is_named(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """The reason of `awaiting-identity` names the permission."""
    launch()
    jenkins = source()
    (agent,) = jenkins.discover().agents
    cloud.fault("GetConsoleOutput", [DENIED])

    with pytest.raises(HostKeyUnknownError, match="the permission ec2:GetConsoleOutput is missing"):
        jenkins.console_output(agent)


def test_the_console_of_an_agent_from_before_a_restart_waits_for_its_region(source: Callable[..., Ec2Source]) -> None:
    """After a restart, the region of an agent is unknown until the first listing."""
    agent = Agent(AgentId("ec2:i-0"), "i-0", "jenkins", "ci", "a", ("10.0.0.1",))

    with pytest.raises(HostKeyUnknownError, match="its region has not answered yet"):
        source().console_output(agent)
