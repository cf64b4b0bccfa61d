"""Machines with systemd, and Ansible that reaches them by SSH from a machine of its own, as an operator's does."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.apt_archive import apt_archive
from lab.booted_machine import BootedMachine
from lab.debian_root import debian_root
from lab.network import Lab

ROOT = Path(__file__).parents[2]
PLAYBOOKS = ROOT / "ansible"
RUN_TIMEOUT = 240.0
"""Seconds for one run of a playbook; it takes up to a minute."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run of Ansible printed."""

    status: int
    output: str

    def counts(self, what: str) -> dict[str, int]:
        """Return a column of the recap, such as `changed`, by host."""
        return {
            host: int(number)
            for host, number in re.findall(rf"^(\S+) +: ok=.* {what}=(\d+)", self.output, re.MULTILINE)
        }

    @property
    def changed(self) -> list[str]:
        """The tasks that changed something, as `host: role : task`."""
        found, task = [], ""
        for line in self.output.splitlines():
            if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\]", line):
                task = match[1]
            elif match := re.match(r"changed: \[([^\]]+)\]", line):
                found.append(f"{match[1]}: {task}")
        return found

    @property
    def errors(self) -> list[str]:
        """The messages of the tasks that failed."""
        return re.findall(r'^fatal: \[.*"msg": "((?:[^"\\]|\\.)*)"', self.output, re.MULTILINE)


class Fleet:
    """An inventory of machines; its variables may be changed between runs."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.machines: dict[str, BootedMachine] = {}
        self.variables: Json = {}
        self._groups: dict[str, list[str]] = {}
        self._folder = folder
        self._operator = lab.machine("operator", "10.77.0.2")
        self._key = folder / "operator"
        self._known_hosts = folder / "known_hosts"
        folder.mkdir(parents=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)

    def boot(self, name: str, ip: str, *groups: str) -> BootedMachine:
        """Boot a machine that apt installs on without a network, and add it to groups of the inventory."""
        machine = self.lab.boot(name, ip, [apt_archive(), debian_root()])
        machine.authorize(self._key.with_suffix(".pub").read_text())
        machine.shell("apt-get -q update")
        with self._known_hosts.open("a") as known:
            known.write(f"{ip} {machine.host_key}\n")
        self.machines[name] = machine
        for group in groups:
            self._groups.setdefault(group, []).append(name)
        return machine

    def play(self, *options: str, playbook: str = "site.yml", check: bool = True, **variables: object) -> Run:
        """Run a playbook with the fleet's variables and further ones; with `check`, it must succeed."""
        inventory = self._folder / "inventory.json"
        inventory.write_text(json.dumps(self._inventory({**self.variables, **variables})))
        program = Path(sys.executable).with_name("ansible-playbook")
        words = [str(program), "-i", str(inventory), str(PLAYBOOKS / playbook), *options]
        done = self._operator.run(words, timeout=RUN_TIMEOUT, env=self._environment())
        run = Run(done.returncode, done.stdout + done.stderr)
        assert not check or run.status == 0, run.output
        return run

    def _inventory(self, variables: Json) -> Json:
        hosts = {name: {"ansible_host": machine.ip} for name, machine in self.machines.items()}
        groups = {group: {"hosts": {name: {} for name in names}} for group, names in self._groups.items()}
        own = {name: variables.pop(name) for name in list(variables) if name in hosts}
        hosts = {name: {**facts, **own.get(name, {})} for name, facts in hosts.items()}
        return {"all": {"hosts": hosts, "children": groups, "vars": {"ansible_user": "root", **variables}}}

    def _environment(self) -> dict[str, str]:
        home = self._folder / "ansible"
        # Sockets have short paths.
        sockets = Path(tempfile.gettempdir()) / f"tunnelmgr-ansible-{self.lab.controller.name}"
        ssh = f"-i {self._key} -o UserKnownHostsFile={self._known_hosts} -o StrictHostKeyChecking=yes"
        return {
            "ANSIBLE_HOME": str(home),
            "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(sockets),
            "ANSIBLE_SSH_ARGS": f"{ssh} -o ControlMaster=auto -o ControlPersist=60s",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            "LC_ALL": "C.UTF-8",
        }
