"""GitLab Runner, Buildkite and GitHub Actions: the hook in the form in which each system starts it."""

import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Final

import pytest

from tests.acceptance.document_commands import ROOT
from tests.ci.conftest import WAIT

if TYPE_CHECKING:
    from tests.ci.conftest import CiSite

pytestmark = pytest.mark.acceptance

FOLDER = ROOT / "docs/ci"
SHORT: Final = f"TUNNELMGR_WAIT={WAIT}"
STATES: Final = [("ready", 0, "is ready"), ("never", 75, "is not ready"), ("taken", 69, "not tunnel")]
SOURCED: Final = f"""bash -c 'export {SHORT}; . "$0"; status=$?; echo sourced; exit "$status"' """
"""How Buildkite's wrapper runs a hook of a job."""
FORMS: Final = {
    "buildkite-agent-startup": f"{SHORT} ",
    "buildkite-pre-command": SOURCED,
    "github-job-started.sh": f"{SHORT} bash -e ",
}
"""What the systems put before the path of a hook."""
Results = dict[tuple[str, str], CompletedProcess[str]]


def instance_ready_command() -> str:
    """Return GitLab Runner's command, with a shorter limit."""
    settings = tomllib.loads((FOLDER / "gitlab-runner.toml").read_text())
    command = str(settings["runners"][0]["autoscaler"]["instance_ready_command"])
    assert "TUNNELMGR_WAIT=300" in command
    return command.replace("TUNNELMGR_WAIT=300", SHORT)


@pytest.fixture(scope="module")
def results(site: "CiSite") -> Results:
    """Run every hook on the agents of three states, as the user of the CI system."""

    def run(name: str, state: str) -> CompletedProcess[str]:
        connection = site.connections[state]
        if name == "gitlab-runner.toml":
            return connection.execute(instance_ready_command())
        place = Path(site.home(state), name)
        connection.copy((FOLDER / name).read_bytes(), str(place), 0o755)
        return connection.execute(f"{FORMS[name]}{place}")

    pairs = [(name, state) for name in ("gitlab-runner.toml", *FORMS) for state, _, _ in STATES]
    with ThreadPoolExecutor(len(pairs)) as executor:
        running = {pair: executor.submit(run, *pair) for pair in pairs}
        return {pair: future.result(120) for pair, future in running.items()}


@pytest.mark.parametrize(("state", "status", "message"), STATES)
def test_gitlab_runner_uses_an_instance_whose_registry_answers(
    results: Results, state: str, status: int, message: str
) -> None:
    """The instance_ready_command, which the runner manager runs over ssh, tells whether to keep the instance."""
    done = results["gitlab-runner.toml", state]

    assert (done.returncode, message in done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize(("state", "status", "message"), STATES)
def test_a_buildkite_agent_registers_when_its_registry_answers(
    results: Results, state: str, status: int, message: str
) -> None:
    """The hook agent-startup is executed; the agent starts only if it succeeds."""
    done = results["buildkite-agent-startup", state]

    assert (done.returncode, message in done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize(("state", "status", "message"), STATES)
def test_a_buildkite_job_starts_when_its_registry_answers(
    results: Results, state: str, status: int, message: str
) -> None:
    """The hook pre-command is sourced by a wrapper, which it does not end, and which reports its status."""
    done = results["buildkite-pre-command", state]

    assert (done.returncode, message in done.stderr) == (status, True), done.stderr
    assert done.stdout == "sourced\n"


@pytest.mark.parametrize(("state", "status", "message"), STATES)
def test_a_github_job_starts_when_its_registry_answers(results: Results, state: str, status: int, message: str) -> None:
    """The script is run as the runner does, by `bash -e`; its annotation names the problem in the job's summary."""
    done = results["github-job-started.sh", state]

    assert (done.returncode, message in done.stderr) == (min(status, 1), True), done.stderr
    assert ("::error title=Registry::" in done.stdout) == (status != 0)
