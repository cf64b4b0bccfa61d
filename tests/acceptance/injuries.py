"""Agents that are each injured in one way, as machines in the lab, and what the status page must say of each."""

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lab.controller import HEAD_WITH_PAGE
from lab.processes import until
from tests.ssh.ssh_server import generate, public

if TYPE_CHECKING:
    from lab.agents import LabAgent
    from tests.acceptance.conftest import Field

OTHER_LISTENER = (
    "import socket, time; s = socket.create_server(('127.0.0.1', 5000)); print('there', flush=True); time.sleep(600)"
)
GROUPS = """
[[group]]
name = "builders"
pull = ["**"]

[[group]]
name = "strict"
require_restricted_key = true

[[source]]
name = "office"
type = "static"
group = "builders"
trust = ["pinned"]
poll = "1s"
"""


@dataclass(frozen=True)
class Injury:
    """How an agent without a tunnel looks on its page: its phase, its error, and words of the reason and the cure."""

    phase: str
    code: str
    why: str
    cure: str


INJURIES = {
    "silent": Injury("down", "unreachable", "Connection refused", "sshd listens at this address and port"),
    "frozen": Injury("down", "unreachable", "cannot reach", "Check that the machine runs"),
    "absent": Injury("down", "unreachable", "cannot reach", "firewalls and security groups"),
    "locked": Injury("down", "authentication", "does not accept the controller's key", "--print authorized-keys"),
    "other": Injury("quarantined", "host-key-mismatch", "host key mismatch", "which machine has this address now"),
    "unknown": Injury("awaiting-identity", "host-key-unknown", "no host_key for it", "the answer of each trust method"),
    "exposed": Injury("quarantined", "exposed-listener", "whole network", "GatewayPorts no"),
    "taken": Injury("down", "listen-refused", "another process or a stale session", "ss -ltnp"),
    "off": Injury("down", "listen-refused", "TCP forwarding is disabled", "AllowTcpForwarding"),
    "unlisted": Injury("down", "listen-refused", "does not permit this address", "permitlisten"),
    "unopened": Injury("down", "connection-lost", "permitopen", "journalctl -u ssh"),
    "powerful": Injury("down", "key-too-powerful", "could also", "--print sshd"),
}


def start_injured(field: "Field") -> None:
    """Boot and injure the agents and one that is well, start the controller, and wait until each shows its error."""
    text = GROUPS
    for name in ("well", *INJURIES):
        options = {"exposed": ("GatewayPorts yes",), "off": ("AllowTcpForwarding no",)}.get(name, ())
        agent = field.boot(name, None, *options)
        _injure(name, agent, field)
        text += f'  [[source.agent]]\n  name = "{name}"\n  address = "{agent.ip}"\n'
        text += '  group = "strict"\n' if name == "powerful" else ""
        if name != "unknown":
            key = public(generate()) if name == "other" else agent.host_key
            text += f'  host_key = "{key}"\n'
    field.controller.configure(text, probe_interval="1s", head=HEAD_WITH_PAGE)
    field.controller.start()
    field.controller.wait_phase("well", "up")
    for name, injury in INJURIES.items():
        _wait(field, name, injury)


def _wait(field: "Field", name: str, injury: Injury) -> None:
    expected = (injury.phase, injury.code)
    field.controller.wait(name, lambda agent: (agent["phase"], agent["error"]) == expected, f"{name} is {expected}", 60)


def _injure(name: str, agent: "LabAgent", field: "Field") -> None:
    line = field.controller.authorized_keys
    match name:
        case "silent":
            agent.stop_sshd()
        case "frozen":
            for pid, _ in agent.sshd_processes():
                os.kill(pid, signal.SIGSTOP)
        case "absent":
            agent.kill()
        case "locked":
            agent.authorize("")
        case "taken":
            log = field.folder / "listener.log"
            agent.popen(["python3", "-c", OTHER_LISTENER], log=log)
            until(lambda: "there" in log.read_text(), "the other process listens")
        case "unlisted":
            agent.authorize(line.replace('permitlisten="127.0.0.1:5000"', 'permitlisten="127.0.0.1:5001"'))
        case "unopened":
            agent.authorize(line.replace('permitopen="127.0.0.1:5000"', 'permitopen="127.0.0.1:5001"'))
        case "powerful":
            agent.authorize(line.partition(" ")[2])
