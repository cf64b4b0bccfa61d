"""The files in docs/jenkins and docs/ci: their syntax, the names of their fields, and what the shared step does."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.acceptance.document_commands import ROOT

pytestmark = pytest.mark.acceptance

JENKINS, CI, HERE = ROOT / "docs/jenkins", ROOT / "docs/ci", Path(__file__).parent
STEP: Final = JENKINS / "vars/withRegistryTunnel.groovy"
GROOVY: Final = ["java", "-cp", "/usr/share/java/groovy-all.jar", "groovy.ui.GroovyMain"]
"""Debian's Groovy 2.4, which is the one in Jenkins; its own start script needs JAVA_HOME."""

KNOWN_FIELDS: Final = {
    # jenkinsci/ec2-plugin: EC2Cloud, SlaveTemplate, UnixData, EC2Tag, SpotConfiguration
    "amazonEC2": {"cloudName", "region", "useInstanceProfileForCredentials", "sshKeysCredentialsId", "templates"}
    | {"ami", "description", "labelString", "mode", "type", "numExecutors", "remoteAdmin", "remoteFS", "javaPath"}
    | {"connectionStrategy", "hostKeyVerificationStrategy", "initScript", "launchTimeoutStr", "idleTerminationMinutes"}
    | {"stopOnTerminate", "amiType", "unixData", "sshPort", "agentCommandPrefix", "tags", "name", "value"}
    | {"spotConfig", "useBidPrice", "fallbackToOndemand"},
    # jenkinsci/ssh-agents-plugin: SSHLauncher and its verification strategies; jenkinsci/jenkins: DumbSlave
    "permanent": {"name", "labelString", "mode", "numExecutors", "remoteFS", "retentionStrategy", "launcher", "ssh"}
    | {"host", "port", "credentialsId", "prefixStartSlaveCmd", "launchTimeoutSeconds", "maxNumRetries"}
    | {"retryWaitTime", "sshHostKeyVerificationStrategy", "manuallyProvidedKeyVerificationStrategy", "key"},
    # jenkinsci/hetzner-cloud-plugin: HetznerCloud, HetznerServerTemplate, SshConnectorAsRoot, IdlePeriodPolicy
    "hetzner": {"name", "credentialsId", "instanceCapStr", "serverTemplates", "labelStr", "mode", "location"}
    | {"serverType", "image", "remoteFs", "numExecutors", "bootDeadline", "userData", "connectivity", "connector"}
    | {"root", "sshCredentialsId", "connectionMethod", "shutdownPolicy", "idle", "idleMinutes"},
}
"""The fields of each plugin's Configuration as Code that the files use, by the plugins' sources."""


def groovy(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a Groovy script."""
    return subprocess.run([*GROOVY, *words], capture_output=True, text=True, timeout=60, check=False)


def keys(node: object) -> set[str]:
    """Return every key in a document."""
    if isinstance(node, dict):
        return set(node) | {key for value in node.values() for key in keys(value)}
    return {key for item in node for key in keys(item)} if isinstance(node, list) else set()


def test_groovy_parses_the_jenkinsfile_and_the_step() -> None:
    """The Groovy that Jenkins contains accepts both files."""
    parsed = groovy(str(HERE / "parse.groovy"), str(JENKINS / "Jenkinsfile"), str(STEP))

    assert parsed.returncode == 0, parsed.stderr


def test_groovy_refuses_a_jenkinsfile_with_an_open_block(tmp_path: Path) -> None:
    """The check of the syntax fails for a file that lacks its last brace."""
    broken = tmp_path / "Jenkinsfile"
    broken.write_text((JENKINS / "Jenkinsfile").read_text().rstrip().removesuffix("}"))

    assert groovy(str(HERE / "parse.groovy"), str(broken)).returncode != 0


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run the step with several options, and a program in place of tunnelmgr-wait whose status is that of the port."""
    program = tmp_path_factory.mktemp("step") / "wait"
    program.write_text("#!/bin/sh\nport=${TUNNELMGR_REGISTRY##*:}\nexit $((port > 5000 ? port - 5000 : 0))\n")
    program.chmod(0o755)
    cases: dict[str, dict[str, object]] = {
        "default": {},
        "limit": {"wait": 300, "registry": "127.0.0.1:5000"},
        **{f"status {status}": {"registry": f"localhost:{5000 + status}"} for status in (69, 75, 77, 78, 127, 3)},
        "bad wait": {"wait": "1; reboot"},
        "no wait": {"wait": 0},
        "bad registry": {"registry": "localhost:5000 & reboot"},
        "unknown": {"timeout": 5},
    }
    done = groovy(str(HERE / "shared_library.groovy"), str(STEP), str(program), json.dumps(list(cases.values())))
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def test_the_step_runs_its_body_once_the_registry_is_ready(outcomes: dict[str, dict[str, Any]]) -> None:
    """The body has the registry in its environment; the options become settings of tunnelmgr-wait."""
    usual, limited = outcomes["default"], outcomes["limit"]

    assert (usual["body"], usual["environment"], usual["error"]) == (True, ["REGISTRY=localhost:5000"], None)
    assert usual["commands"] == ["TUNNELMGR_WAIT=120 TUNNELMGR_REGISTRY=localhost:5000 /usr/local/bin/tunnelmgr-wait"]
    assert limited["commands"] == ["TUNNELMGR_WAIT=300 TUNNELMGR_REGISTRY=127.0.0.1:5000 /usr/local/bin/tunnelmgr-wait"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (69, "another process answers on its port"),
        (75, "it was not ready in time"),
        (77, "the controller refuses this agent"),
        (78, "the wait is misconfigured"),
        (127, "this agent has no /usr/local/bin/tunnelmgr-wait"),
        (3, "tunnelmgr-wait ended with status 3"),
    ],
)
def test_the_step_fails_the_build_with_the_reason(
    outcomes: dict[str, dict[str, Any]], status: int, reason: str
) -> None:
    """The body does not run, and the error says what each status means."""
    outcome = outcomes[f"status {status}"]

    assert not outcome["body"]
    assert reason in outcome["error"]


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("bad wait", "wait must be a number of seconds from 1 to 86400, not 1; reboot"),
        ("no wait", "wait must be a number of seconds from 1 to 86400, not 0"),
        ("bad registry", "registry must be HOST:PORT, such as localhost:5000, not localhost:5000 & reboot"),
        ("unknown", "unknown option timeout; known are wait and registry"),
    ],
)
def test_the_step_refuses_options_that_are_invalid(outcomes: dict[str, dict[str, Any]], case: str, error: str) -> None:
    """No command is run with an option that is not what it should be."""
    outcome = outcomes[case]

    assert error in outcome["error"]
    assert (outcome["commands"], outcome["body"]) == ([], False)


@pytest.mark.parametrize(("file", "symbol"), [("ec2", "amazonEC2"), ("ssh", "permanent"), ("hetzner", "hetzner")])
def test_configuration_as_code_uses_fields_that_the_plugin_has(file: str, symbol: str) -> None:
    """Each file is YAML, and every key in it is a field of the plugin's source."""
    jenkins = yaml.safe_load((JENKINS / f"casc-{file}.yaml").read_text())["jenkins"]
    ((kind, entries),) = jenkins.items()
    ((found, fields),) = entries[0].items()

    assert (kind, found, len(entries)) == ("nodes" if file == "ssh" else "clouds", symbol, 1)
    assert keys(fields) - KNOWN_FIELDS[symbol] == set()


@pytest.mark.parametrize("kind", ["ec2", "hetzner"])
def test_the_documented_command_protects_the_variables_of_a_hook(kind: str, tmp_path: Path) -> None:
    """Configuration as Code finds no variable to replace, and has the hook as it was once it has removed each `^`."""
    (command,) = re.findall(rf"`tunnelmgr hook {kind} \| (sed [^`]+)`", (JENKINS / f"casc-{kind}.yaml").read_text())
    key = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = tmp_path / "tunnelmgr.toml"
    config.write_text(f'[ssh]\nkey = "{key}"\n')
    words = [sys.executable, "-m", "tunnelmgr", "hook", kind, "-c", str(config)]
    hook = subprocess.run(words, capture_output=True, text=True, check=True).stdout

    protected = subprocess.run(["sh", "-c", command], input=hook, capture_output=True, text=True, check=True).stdout

    assert ("${" in hook, "^${" in hook) == (kind == "ec2", False)
    assert re.findall(r"(?<!\^)\$\{", protected) == []
    assert protected.replace("^${", "${") == hook


def test_configuration_as_code_uses_the_documented_hooks() -> None:
    """The prefix is that of docs/agents.md, and the launcher's limit is above the hook's."""
    ssh = yaml.safe_load((JENKINS / "casc-ssh.yaml").read_text())["jenkins"]["nodes"][0]["permanent"]["launcher"]["ssh"]
    template = yaml.safe_load((JENKINS / "casc-ec2.yaml").read_text())["jenkins"]["clouds"][0]["amazonEC2"]["templates"]
    agents = (ROOT / "docs/agents.md").read_text()
    (prefix,) = re.findall(r"^    (/usr/local/bin/tunnelmgr-wait --soft &&)$", agents, re.MULTILINE)

    assert ssh["prefixStartSlaveCmd"] == template[0]["amiType"]["unixData"]["agentCommandPrefix"] == prefix
    assert ssh["launchTimeoutSeconds"] > 120


def test_the_runners_configuration_is_toml() -> None:
    """GitLab Runner's file has one runner with a fleeting plugin and the command that waits."""
    (runner,) = tomllib.loads((CI / "gitlab-runner.toml").read_text())["runners"]

    assert runner["executor"] == "docker-autoscaler"
    assert "tunnelmgr-wait" in runner["autoscaler"]["instance_ready_command"]


@pytest.mark.parametrize("name", ["buildkite-agent-startup", "buildkite-pre-command", "github-job-started.sh"])
def test_shellcheck_accepts_each_hook(name: str) -> None:
    """Each hook is a script without a finding."""
    checked = subprocess.run(["shellcheck", str(CI / name)], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout
