"""The roles on a machine with a registry and a controller and on two agents, from nothing to their removal.

The tests run in the order of this file: each begins with the fleet that the one before it has left.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab.images import digest_of, make_image, skopeo_copy
from lab.processes import until
from tests.ansible.fleet import Fleet, Json, Run

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

CONTROLLER, AGENTS, OPERATOR = "registry-1", ("builder-1", "builder-2"), "operator"
IMAGE = "docker://localhost:5000/team/app:1"
LINE = "/etc/ssh/authorized_keys.d/tunnel"
CONFIG = "/etc/tunnelmgr/tunnelmgr.toml"
OLD, NEW = "/etc/tunnelmgr/id_ed25519", "/etc/tunnelmgr/id_next"
OWN_DROP_IN = "/etc/systemd/system/tunnelmgr.service.d/own.conf"


def configuration(*controller: str, ssh: tuple[str, ...] = (f'key = "{OLD}"',)) -> str:
    """Return the text of a configuration, with these lines in two of its tables."""
    tables = ["[controller]", *controller, "[ssh]", 'probe_interval = "1s"', *ssh]
    return "\n".join([*tables, "[[group]]", 'name = "builders"', 'pull = ["**"]', 'push = ["team/*"]'])


@dataclass(frozen=True)
class Deployed:
    """A fleet after its first run, and what was seen on the way."""

    fleet: Fleet
    foreseen: Run
    first: Run
    before: dict[str, set[str]]
    untouched: dict[str, set[str]]

    @property
    def agents(self) -> list[Json]:
        """The agents that the controller lists."""
        listed: list[Json] = json.loads(self.controller("list --json"))
        return listed

    def controller(self, words: str) -> str:
        """Run a command of tunnelmgr on the controller."""
        return self.fleet.machines[CONTROLLER].shell(f"tunnelmgr {words}")

    def until_up(self) -> None:
        """Wait until both agents have their tunnels."""
        until(lambda: [agent["phase"] for agent in self.agents] == ["up", "up"], "both agents are up", timeout=30.0)


def files(fleet: Fleet) -> dict[str, set[str]]:
    """Return the files of each machine, without those of apt, dpkg, logins, caches, the journal and processes."""
    pruned = "/proc /sys /dev /run /tmp /var/tmp /root/.ansible /root/.cache"
    state = "/var/cache /var/lib/apt /var/lib/dpkg /var/lib/systemd"
    logs = "/var/log/apt /var/log/btmp /var/log/dpkg.log /var/log/journal"
    words = " -o ".join(f"-path {name}" for name in f"{pruned} {state} {logs}".split())
    line = rf"find / \( {words} \) -prune -o -print"
    return {name: set(machine.shell(line).splitlines()) for name, machine in fleet.machines.items()}


@pytest.fixture(scope="module")
def deployed(empty_fleet: Fleet, package: Path) -> Deployed:
    """Boot fresh machines, ask Ansible what it would do, and have it done."""
    fleet = empty_fleet
    fleet.boot(CONTROLLER, "10.77.0.10", "controllers", "jenkins", "prometheus")
    for number, name in enumerate(AGENTS, 11):
        fleet.boot(name, f"10.77.0.{number}", "agents")
    fleet.variables = {
        "controller_deb": str(package),
        "controller_group": "builders",
        "controller_config": configuration(),
        "controller_operators": [OPERATOR],
        "jenkins_user": "root",
        "jenkins_ec2_clouds": [{"name": "ci", "region": "eu-west-1", "templates": [{"ami": "ami-1"}]}],
        "jenkins_hetzner_clouds": [{"name": "hcloud", "serverTemplates": [{"name": "docker"}, {"userData": "own"}]}],
        "jenkins_nodes": ["builder-1"],
        "jenkins_credentials_id": "builders",
        "prometheus_service": "",
    }
    machine = fleet.machines[CONTROLLER]
    machine.shell(f"mkdir {Path(OWN_DROP_IN).parent}; printf '[Service]\nEnvironment=OWN=kept\n' >{OWN_DROP_IN}")
    before = files(fleet)
    foreseen = fleet.play("--check", "--diff")
    untouched = files(fleet)
    first = fleet.play()
    return Deployed(fleet, foreseen, first, before, untouched)


def test_check_mode_on_fresh_machines_succeeds_and_changes_nothing(deployed: Deployed) -> None:
    """Before the first run, check mode names what it would change, without a failure and without a changed file."""
    assert set(deployed.foreseen.counts("failed").values()) == {0}
    assert f"{AGENTS[0]}: agent : Create the user" in deployed.foreseen.changed
    assert f"{CONTROLLER}: registry : Install the registry" in deployed.foreseen.changed
    for name, found in deployed.untouched.items():
        assert found - deployed.before[name] == set()


def test_the_first_run_gives_every_agent_its_tunnel(deployed: Deployed) -> None:
    """The agents of the inventory are up, proved by the host keys that Ansible read on them."""
    deployed.until_up()

    assert {agent["name"]: (agent["trust"], agent["address"]) for agent in deployed.agents} == {
        "builder-1": ("pinned", "10.77.0.11"),
        "builder-2": ("pinned", "10.77.0.12"),
    }


def test_an_image_that_one_agent_pushes_is_pulled_by_another(deployed: Deployed, tmp_path: Path) -> None:
    """Both agents reach the registry at localhost:5000, and get the same content."""
    deployed.until_up()
    image = make_image(tmp_path / "image")
    one, two = (deployed.fleet.machines[name].network_only() for name in AGENTS)

    pushed = skopeo_copy(one, image, IMAGE)
    pulled = skopeo_copy(two, IMAGE, f"oci:{tmp_path / 'pulled'}:1")

    assert (pushed.returncode, pulled.returncode) == (0, 0), pushed.stderr + pulled.stderr
    assert digest_of(None, f"oci:{tmp_path / 'pulled'}:1") == digest_of(None, image)


def test_the_registry_has_never_listened_beyond_loopback(deployed: Deployed) -> None:
    """The registry's first start already had the role's configuration, not Debian's, which listens on every address."""
    machine = deployed.fleet.machines[CONTROLLER]

    starts = machine.shell("journalctl -u docker-registry -o cat | grep -F 'listening on'")

    assert "listening on 127.0.0.1:5000" in starts
    assert "[::]:5000" not in starts


def test_jenkins_gets_the_hooks_with_its_variables_protected(deployed: Deployed) -> None:
    """Configuration as Code replaces `${…}` and turns `^${` into `${`, so the hook in the fragment stays whole."""
    machine = deployed.fleet.machines[CONTROLLER]
    fragment = yaml.safe_load(machine.path("/var/lib/jenkins/casc_configs/tunnelmgr.yaml").read_text())["jenkins"]
    (template,) = fragment["clouds"][0]["amazonEC2"]["templates"]
    server, own = fragment["clouds"][1]["hetzner"]["serverTemplates"]
    launcher = fragment["nodes"][0]["permanent"]["launcher"]["ssh"]
    hook = machine.path("/var/lib/jenkins/tunnelmgr/ec2-init.sh").read_text()
    user_data = machine.path("/var/lib/jenkins/tunnelmgr/hetzner.yaml").read_text()

    assert hook == deployed.controller("hook ec2") + "\n"
    assert user_data == deployed.controller("hook hetzner") + "\n"
    assert re.findall(r"(?<!\^)\$\{", template["initScript"] + server["userData"]) == []
    assert (server["userData"].replace("^${", "${"), own["userData"]) == (user_data, "own")
    protected = template["initScript"].replace("^${", "${").replace("export TUNNELMGR_WAIT=120\n", "", 1)
    assert protected == hook
    assert launcher["prefixStartSlaveCmd"] == "TUNNELMGR_WAIT=120 /usr/local/bin/tunnelmgr-wait --soft && "
    key = launcher["sshHostKeyVerificationStrategy"]["manuallyProvidedKeyVerificationStrategy"]["key"]
    assert key == deployed.fleet.machines["builder-1"].host_key


def test_an_operator_uses_the_commands_without_root(deployed: Deployed) -> None:
    """A user of `controller_operators` reaches the daemon's socket; the key stays the daemon's."""
    machine = deployed.fleet.machines[CONTROLLER]
    as_operator = ["runuser", "-u", OPERATOR, "--"]

    listed = machine.run([*as_operator, "tunnelmgr", "list", "--json"])

    assert listed.returncode == 0, listed.stderr
    assert {agent["name"] for agent in json.loads(listed.stdout)} == set(AGENTS)
    assert machine.run([*as_operator, "cat", OLD]).returncode != 0


def test_a_second_run_changes_nothing(deployed: Deployed) -> None:
    """A run with the same inventory reports no change on any machine."""
    run = deployed.fleet.play()

    assert run.changed == []
    assert set(run.counts("changed").values()) == {0}


def test_check_mode_on_a_healthy_fleet_reports_nothing(deployed: Deployed) -> None:
    """Check mode neither fails nor shows a change, and does not accuse sshd."""
    run = deployed.fleet.play("--check", "--diff")

    assert run.changed == []
    assert set(run.counts("failed").values()) == {0}
    assert "restrict,port-forwarding" not in run.output


def test_a_run_for_the_agents_alone_works(deployed: Deployed) -> None:
    """With `--limit agents` the key is still read on the controller, which is not in the run."""
    machine = deployed.fleet.machines[AGENTS[0]]
    line = machine.path(LINE).read_text()
    machine.path(LINE).unlink()

    run = deployed.fleet.play("--limit", "agents")

    assert set(run.counts("failed")) == set(AGENTS)
    assert machine.path(LINE).read_text() == line
    assert run.changed == [
        f"{AGENTS[0]}: agent : Authorize the controller's keys to open the listeners and to probe them only"
    ]


def test_a_wrong_configuration_is_refused_in_one_line_and_changes_nothing(deployed: Deployed) -> None:
    """Every problem is in one message; the file and the daemon stay as they were, and later plays do not run."""
    machine = deployed.fleet.machines[CONTROLLER]
    before = machine.shell(f"sha256sum {CONFIG}; systemctl show --property MainPID --value tunnelmgr")
    wrong = configuration('metrics = "0.0.0.0:9750"', 'nonsense = "1"')

    run = deployed.fleet.play(check=False, controller_config=wrong)

    assert run.status != 0
    (message,) = run.errors
    assert message.startswith(f"{CONFIG}: controller.")
    assert "0.0.0.0:9750 is not loopback" in message
    assert "controller.nonsense: unknown key" in message
    assert "Traceback" not in run.output
    assert run.changed == []
    assert machine.shell(f"sha256sum {CONFIG}; systemctl show --property MainPID --value tunnelmgr") == before


def test_a_setting_that_needs_a_restart_is_live_at_the_end(deployed: Deployed) -> None:
    """After a run that turns on metrics and the audit log, both are there, and the tunnels are up again."""
    machine = deployed.fleet.machines[CONTROLLER]
    changed = configuration('metrics = "127.0.0.1:9750"', 'audit = "/var/log/tunnelmgr/audit.jsonl"')
    deployed.fleet.variables["controller_config"] = changed

    run = deployed.fleet.play("--tags", "configuration")

    assert f"{CONTROLLER}: controller : Restart the controller if a reload is not enough" in run.changed
    assert "tunnelmgr_agents" in machine.shell("curl -sSf http://127.0.0.1:9750/metrics")
    assert machine.path("/var/log/tunnelmgr/audit.jsonl").exists()
    deployed.until_up()


def test_a_key_is_rotated_with_two_keys_on_the_agents(deployed: Deployed) -> None:
    """With two keys agents accept both, also after another run, and `check` counts those that use the next one."""
    agent, variables = deployed.fleet.machines[AGENTS[0]], deployed.fleet.variables
    old = agent.path(LINE).read_text()
    variables["tunnelmgr_key_files"] = [OLD, NEW]
    variables["controller_config"] = configuration(ssh=(f'key = "{OLD}"', f'next_key = "{NEW}"'))

    deployed.fleet.play("--tags", "configuration,keys")
    again = deployed.fleet.play("--tags", "keys")

    assert again.changed == []
    assert agent.path(LINE).read_text().startswith(old)
    assert len(agent.path(LINE).read_text().splitlines()) == 2
    deployed.fleet.machines[CONTROLLER].shell("systemctl restart tunnelmgr")
    deployed.until_up()
    checked = deployed.fleet.machines[CONTROLLER].shell("runuser -u tunnelmgr -- tunnelmgr check")
    assert "next key accepted by 2 of 2 agents" in checked


def test_the_rotation_ends_with_one_key_which_systemd_passes(deployed: Deployed) -> None:
    """The next key alone opens every tunnel; as a credential of the unit it belongs to root, also after another run."""
    machine, agent = deployed.fleet.machines[CONTROLLER], deployed.fleet.machines[AGENTS[0]]
    old, new = agent.path(LINE).read_text().splitlines()
    variables = deployed.fleet.variables
    variables["tunnelmgr_key_files"] = [NEW]
    variables["controller_credentials"] = {"key": NEW}
    variables["controller_config"] = configuration(ssh=('key = "credential:key"',))

    deployed.fleet.play("--tags", "configuration,keys")
    again = deployed.fleet.play("--tags", "configuration")

    assert old != new
    assert agent.path(LINE).read_text() == f"{new}\n"
    assert again.changed == []
    assert machine.shell(f"stat -c '%U %a' {NEW}") == "root 600"
    deployed.until_up()


def test_a_drop_in_of_the_operator_has_survived_every_run(deployed: Deployed) -> None:
    """The daemon runs with what another file than the role's sets, beside the role's own."""
    machine = deployed.fleet.machines[CONTROLLER]

    environment = machine.shell("cat /proc/$(systemctl show --property MainPID --value tunnelmgr)/environ")

    assert "OWN=kept" in environment.split("\0")
    assert machine.shell(f"ls {Path(OWN_DROP_IN).parent}") == "ansible.conf\nown.conf"


def test_the_removal_keeps_keys_and_configuration(deployed: Deployed) -> None:
    """Without a purge the programs are gone, and the keys, the configuration, the state and the images stay."""
    machine = deployed.fleet.machines[CONTROLLER]
    keep = f"sha256sum {NEW} {CONFIG} /etc/docker/registry/config.yml /etc/logrotate.d/tunnelmgr"
    keep += "; stat -c %i /var/lib/tunnelmgr/state.db; find /var/lib/docker-registry -type f | sort"
    before = machine.shell(keep)

    deployed.fleet.play(playbook="uninstall.yml")

    assert machine.shell(keep) == before
    assert machine.run(["systemctl", "is-active", "tunnelmgr", "docker-registry"]).stdout.split() == ["inactive"] * 2
    assert machine.run(["tunnelmgr", "--version"]).returncode != 0


def test_the_removal_leaves_nothing(deployed: Deployed) -> None:
    """After the removal with its data, each machine has the files that it had before the first run, and its users."""
    run = deployed.fleet.play("-e", "tunnelmgr_purge=true", playbook="uninstall.yml")

    assert set(run.counts("failed").values()) == {0}
    after = files(deployed.fleet)
    backups = {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")}
    for name in AGENTS:
        assert after[name] - deployed.before[name] - backups == set()
        assert "tunnel:" not in deployed.fleet.machines[name].shell("cat /etc/passwd")
    left = after[CONTROLLER] - deployed.before[CONTROLLER] - backups
    assert [file for file in left if "tunnelmgr" in file or "registry" in file] == []
