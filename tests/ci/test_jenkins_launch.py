"""Each hook for Jenkins in each state of the tunnel, in the launch of its plugin against a real sshd."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from lab.jenkins.connection import LaunchFailedError
from lab.jenkins.launchers import Ec2Launcher, HetznerLauncher, SshLauncher
from lab.processes import until
from tests.ci.conftest import WAIT
from tunnelmgr.hooks import render

if TYPE_CHECKING:
    from lab.jenkins.channel import Channel
    from tests.ci.conftest import CiSite

pytestmark = pytest.mark.acceptance

Result = TypeVar("Result")
Folders = pytest.TempPathFactory
PREFIX: Final = "/usr/local/bin/tunnelmgr-wait --soft &&"
"""The Prefix Start Agent Command of docs/agents.md."""
ASK: Final = "curl -fsS http://localhost:5000/v2/"
MESSAGES: Final = {
    "ready": "is ready",
    "late": "is ready",
    "never": f"is not ready after {WAIT} s",
    "refused": "the controller refuses this agent",
    "taken": "listens on 127.0.0.1:5000, not tunnel",
    "no-client": "neither curl nor wget",
}
STATUSES: Final = {"ready": 0, "late": 0, "never": 75, "refused": 77, "taken": 69, "no-client": 78}


@dataclass
class Attempt:
    """What came of a launch."""

    channel: "Channel | None"
    error: str
    log: str


def attempt(site: "CiSite", folder: Path, launcher: Ec2Launcher | SshLauncher | HetznerLauncher, state: str) -> Attempt:
    """Launch the agent that is in a state."""
    log = folder / f"{state}.log"
    log.touch()
    try:
        channel = launcher.launch(site.connections[state], log)
    except LaunchFailedError as failed:
        return Attempt(None, str(failed), log.read_text())
    return Attempt(channel, "", log.read_text())


def in_every_state(site: "CiSite", act: Callable[[str], Result]) -> dict[str, Result]:
    """Do something on the agents of all states at once; the late one gets its tunnel while a hook waits for it."""
    with ThreadPoolExecutor(len(MESSAGES)) as executor:
        acting = {state: executor.submit(act, state) for state in MESSAGES}
        site.until_late_agent_waits()
        site.list_late_agent(listed=True)
        found = {state: future.result(120) for state, future in acting.items()}
    site.list_late_agent(listed=False)
    return found


def close(attempts: dict[str, Attempt]) -> None:
    """Disconnect the agents that were launched."""
    for each in attempts.values():
        if each.channel is not None:
            each.channel.close()


def limit(state: str) -> int:
    """Return the seconds that a hook may wait."""
    return WAIT if state in {"never", "taken"} else 60


def init_script(seconds: int) -> str:
    """Return the EC2 hook with another limit, set as docs/agents.md says."""
    first, rest = render("ec2").split("\n", 1)
    return f"{first}\nexport TUNNELMGR_WAIT={seconds}\n{rest}"


@pytest.fixture(scope="module")
def by_ec2(site: "CiSite", tmp_path_factory: Folders) -> Iterator[dict[str, Attempt]]:
    """Launch by the EC2 plugin, with the hook as init script."""
    folder = tmp_path_factory.mktemp("ec2")

    def launch(state: str) -> Attempt:
        return attempt(site, folder, Ec2Launcher(init_script(limit(state)), remote_fs=site.home(state)), state)

    attempts = in_every_state(site, launch)
    yield attempts
    close(attempts)


@pytest.fixture(scope="module")
def by_ssh(site: "CiSite", tmp_path_factory: Folders) -> Iterator[dict[str, Attempt]]:
    """Launch by the SSH launcher, with the hook as prefix."""
    folder = tmp_path_factory.mktemp("ssh")

    def launch(state: str) -> Attempt:
        prefix = f"TUNNELMGR_WAIT={limit(state)} {PREFIX}"
        return attempt(site, folder, SshLauncher(prefix, site.home(state)), state)

    attempts = in_every_state(site, launch)
    yield attempts
    close(attempts)


@pytest.fixture(scope="module")
def by_hetzner(site: "CiSite", tmp_path_factory: Folders) -> Iterator[dict[str, tuple[Attempt, int, str]]]:
    """Launch by the Hetzner plugin, then run the hook as the pipeline's first step."""
    folder = tmp_path_factory.mktemp("hetzner")

    def build(state: str) -> tuple[Attempt, int, str]:
        place = f"{site.home(state)}/hetzner"  # which the plugin expects to exist
        site.connections[state].execute(f"mkdir -p {place}")
        tried = attempt(site, folder, HetznerLauncher(place), state)
        assert tried.channel is not None, tried.error
        step = f"TUNNELMGR_WAIT={limit(state)} /usr/local/bin/tunnelmgr-wait"
        return tried, *tried.channel.sh(step, timeout=90)

    builds = in_every_state(site, build)
    yield builds
    close({state: tried for state, (tried, _, _) in builds.items()})


def assert_builds(tried: Attempt) -> None:
    """Assert that an agent was launched, that nothing but remoting wrote to its stdout, and that it runs a build."""
    assert tried.channel is not None, tried.error
    assert tried.channel.noise == b""
    assert tried.channel.sh("echo built") == (0, "built\n")


@pytest.mark.parametrize("state", MESSAGES)
def test_the_ec2_plugin_launches_an_agent_unless_another_process_has_the_port(
    by_ec2: dict[str, Attempt], state: str
) -> None:
    """The init script reports every problem in Jenkins' log, and fails only if a build would get foreign images."""
    tried = by_ec2[state]

    assert MESSAGES[state] in tried.log
    if state == "taken":
        assert "init script failed: exit code=69" in tried.error
        return
    assert_builds(tried)


@pytest.mark.parametrize("state", MESSAGES)
def test_the_ssh_launcher_starts_an_agent_that_is_ready_or_may_become_so(
    by_ssh: dict[str, Attempt], state: str
) -> None:
    """As a prefix with --soft, the script leaves the channel alone; 69, 77 and 78 stop the launch."""
    tried = by_ssh[state]

    assert MESSAGES[state] in tried.log
    if state in {"refused", "taken", "no-client"}:
        assert f"agent process exited with status {STATUSES[state]}" in tried.error
        return
    assert_builds(tried)


@pytest.mark.parametrize("state", MESSAGES)
def test_the_hetzner_plugin_launches_at_once_and_the_pipeline_waits(
    by_hetzner: dict[str, tuple[Attempt, int, str]], state: str
) -> None:
    """The agent starts in every state, and the pipeline's first step ends with the script's status."""
    tried, status, output = by_hetzner[state]

    assert tried.channel is not None
    assert tried.channel.noise == b""
    assert (status, MESSAGES[state] in output) == (STATUSES[state], True), output


def test_the_ec2_plugin_with_mina_runs_the_script_without_a_terminal(site: "CiSite", tmp_path: Path) -> None:
    """The script needs no terminal; it runs once for an instance, and not at the next launch."""
    site.connections["ready"].execute("rm -f ~/.hudson-run-init")
    launch = partial(
        attempt, site, launcher=Ec2Launcher(init_script(60), remote_fs=site.home("ready"), pty=False), state="ready"
    )
    for name in ("first", "second"):
        (tmp_path / name).mkdir()

    first, second = launch(tmp_path / "first"), launch(tmp_path / "second")

    for tried in (first, second):
        assert tried.channel is not None, tried.error
        assert tried.channel.sh(ASK)[0] == 0
        tried.channel.close()
    assert "is ready" in first.log
    assert "is ready" not in second.log


def test_the_ec2_plugin_tries_again_until_the_instances_ssh_answers(site: "CiSite", tmp_path: Path) -> None:
    """A booting instance has neither ssh nor a tunnel: the plugin logs in once it can, then the hook waits."""
    machine = site.field.agents["ready"]
    site.connections["ready"].execute("rm -f ~/.hudson-run-init")
    machine.stop_sshd()
    launcher = Ec2Launcher(init_script(60), remote_fs=site.home("ready"), bootstrap_auth_sleep=0.2)
    (tmp_path / "ready.log").touch()

    with ThreadPoolExecutor(1) as executor:
        launching = executor.submit(attempt, site, tmp_path, launcher, "ready")
        until(lambda: "Trying again" in (tmp_path / "ready.log").read_text(), "the plugin has tried")
        machine.start_sshd()
        tried = launching.result(90)

    assert tried.channel is not None, tried.error
    assert "is ready" in tried.log
    tried.channel.close()


def test_the_ssh_launchers_own_limit_includes_the_wait(site: "CiSite", tmp_path: Path) -> None:
    """If Connection Timeout in Seconds is below TUNNELMGR_WAIT, an agent without a tunnel does not start."""
    prefix = f"TUNNELMGR_WAIT=60 {PREFIX}"

    tried = attempt(site, tmp_path, SshLauncher(prefix, site.home("never"), launch_timeout_seconds=4), "never")

    assert tried.channel is None
    assert "launch timed out" in tried.error
