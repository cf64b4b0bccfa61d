"""The documented way of a new user, from `apt install` on a fresh machine to the first pull on an agent."""

import re
from pathlib import Path

import pytest

from lab.apt_archive import apt_archive
from lab.booted_machine import BootedMachine
from lab.debian_root import debian_root
from lab.images import digest_of, make_image, skopeo_copy
from lab.network import Lab
from lab.processes import until
from tests.packaging.conftest import ADDRESS, ROOT

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
IMAGE = "docker://localhost:5000/team/app:1"
CONFIG = "/etc/tunnelmgr/tunnelmgr.toml"
REGISTRY = "/etc/docker/registry/config.yml"


def documented() -> list[str]:
    """Return the commands of the section on the installation."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"^## Install\n(.*?)(?=^##)", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition("  #")[0].strip() for line in re.findall(r"^    (.+)$", body, re.MULTILINE)]
    assert [line.split()[0] for line in lines] == ["apt", "tunnelmgr", "$EDITOR", "runuser", "systemctl", "tunnelmgr"]
    return lines


def edited(text: str, address: str, host_key: str) -> str:
    """Return the package's configuration as a user completes it: the examples of a group and of an agent in use."""
    text = text.replace('# [[group]]\n# name = "builders"\n# pull', '[[group]]\nname = "builders"\npull')
    text = text.replace("\n# push = ", "\npush = ").replace('group = "ci"\ntrust', 'group = "builders"\ntrust')
    head, mark, agent = text.rpartition("#   [[source.agent]]")
    agent = re.sub(r"^#", "", mark + agent, flags=re.MULTILINE).replace("192.0.2.7", address)
    return head + re.sub(r"ssh-ed25519 AAAA…", host_key, agent)


def run_registry(machine: BootedMachine) -> None:
    """Install Debian's registry and give it the documented settings."""
    machine.shell(
        "apt-get -q update; DEBIAN_FRONTEND=noninteractive apt-get install -y -q docker-registry", timeout=120
    )
    config = machine.path(REGISTRY)
    text = re.sub(r"addr: .*", "addr: 127.0.0.1:5000", config.read_text())
    config.write_text(re.sub(r"^auth:\n(?: .*\n)+", "", text, flags=re.MULTILINE))
    machine.shell("systemctl restart docker-registry")


def test_the_documented_commands_lead_to_a_pull(lab: Lab, package: Path, tmp_path: Path) -> None:
    """With the documented commands and the examples of the configuration, an agent pushes and pulls an image."""
    machine = lab.boot("registry", ADDRESS, [apt_archive(), debian_root()])
    run_registry(machine)
    machine.path("/root/tunnelmgr.deb").write_bytes(package.read_bytes())
    install, init, _edit, *rest = documented()

    machine.shell(re.sub(r"\./tunnelmgr_\S+", "-y /root/tunnelmgr.deb", install), timeout=120)
    machine.shell(init)
    agent = lab.agent("builder-1", "10.77.0.20", machine.shell("tunnelmgr init --print authorized-keys"))
    config = machine.path(CONFIG)
    config.write_text(edited(config.read_text(), agent.ip, agent.host_key))
    for line in rest:
        until(lambda line=line: machine.run(["sh", "-c", line]).returncode == 0, f"{line} succeeds")  # type: ignore[misc]
    until(lambda: agent.listeners(5000), "the agent has its registry")
    image = make_image(tmp_path / "image")
    pushed = skopeo_copy(agent, image, IMAGE)
    pulled = skopeo_copy(agent, IMAGE, f"oci:{tmp_path}/pulled:1")

    assert (pushed.returncode, pulled.returncode) == (0, 0), pushed.stderr + pulled.stderr
    assert digest_of(agent, f"oci:{tmp_path}/pulled:1") == digest_of(agent, image)
