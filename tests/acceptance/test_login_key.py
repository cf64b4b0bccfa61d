"""What the login key could do on agents with OpenSSH's own sshd, in each state of their set-up."""

import json
import sys

import pytest

from lab.agents import LabAgent
from lab.processes import until
from tests.acceptance.conftest import GROUPS, Field
from tunnelmgr.ssh.key_powers import SOCKETS

pytestmark = pytest.mark.acceptance

STRICT = f"{GROUPS}require_restricted_key = true\n"
"""The group ci, to which no agent here belongs by default, is strict."""


_SOCKET = """
import pathlib, socket, sys
place = pathlib.Path(sys.argv[1])
place.parent.mkdir(parents=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(place))
place.chmod(0o666)
listener.listen()
while True:
    listener.accept()[0].close()
"""
"""Stands for the journal of systemd, which the lab's agents do not run."""


def key_of(field: Field) -> str:
    """Return the login key without any options."""
    return field.controller.authorized_keys[field.controller.authorized_keys.index("ssh-ed25519 ") :]


def boot(field: Field, name: str, line: str, *options: str) -> LabAgent:
    """Boot an agent with this line of authorized_keys."""
    agent = field.lab.agent(name, f"10.77.0.{40 + len(field.agents)}", line, sshd_options=options)
    field.agents[name] = agent
    return agent


def test_what_the_key_could_do_is_shown_with_the_cure(field: Field) -> None:
    """An agent set up as documented shows nothing; a line without limits, or an sshd without, is named."""
    shell = "ForceCommand none"
    careful = field.boot("careful")
    careless = boot(field, "careless", key_of(field), shell, "AllowStreamLocalForwarding yes")
    forced = boot(field, "forced", field.controller.authorized_keys, shell)
    argv = [sys.executable, "-c", _SOCKET, SOCKETS[0]]
    careless.popen(argv)
    until(lambda: careless.run(["test", "-S", SOCKETS[0]]).returncode == 0, "the journal's socket is there")
    field.up(careful, careless, forced)

    def shown(name: str) -> str:
        return str(field.controller.agent(name)["message"])

    field.controller.wait("careless", lambda agent: agent["error"] == "key-too-powerful", "it is shown")
    field.controller.wait("forced", lambda agent: agent["error"] == "key-too-powerful", "it is shown")

    assert "listen on other ports, connect to other ports, connect to unix sockets, read and write" in shown("careless")
    assert "tunnelmgr init --print authorized-keys" in shown("careless")
    assert "could also read and write files by sftp on the agent" in shown("forced")
    assert field.controller.agent("careful")["error"] is None
    listed = json.loads(field.controller.command("list", "--json").stdout)
    assert {agent["name"]: agent["error"] for agent in listed}["careless"] == "key-too-powerful"
    assert field.reaches(careless), "it is a warning"


def test_a_strict_group_refuses_until_the_agent_is_cured(field: Field) -> None:
    """The agent has no listener; once its sshd restricts the key, the next try brings it up."""
    agent = boot(field, "agent", field.controller.authorized_keys, "ForceCommand none")
    field.static(agent, group="ci", groups=STRICT)
    field.controller.start()

    refused = field.controller.wait("agent", lambda one: one["error"] == "key-too-powerful", "it is refused")
    assert refused["phase"] == "down"
    assert agent.listeners(5000) == []
    settings = agent.run(["sed", "-i", "/ForceCommand none/d", "/etc/ssh/sshd_config"])
    assert settings.returncode == 0, settings.stderr
    agent.restart_sshd()
    field.controller.command("retry", "agent")

    assert field.controller.wait_phase("agent", "up")["error"] is None
    until(lambda: field.reaches(agent), "the registry answers")
