"""Agents that never answer do not delay those that do: with the real daemon, at its default deadlines."""

import pytest

from lab.agents import LabAgent
from lab.controller import DEFAULTS_HEAD
from lab.faults.unresponsive import SILENT, UNREACHABLE, addresses
from lab.processes import until
from tests.acceptance.conftest import GROUPS, Field
from tests.ssh.ssh_server import generate, public

pytestmark = pytest.mark.acceptance

DEAD = 60
"""Agents of each kind that never answer."""
SOON = 15.0
"""Seconds in which a good agent must be up; it would take minutes if dead agents held the slots."""


def entry(name: str, address: str, host_key: str) -> str:
    """Return the configuration of one agent."""
    return f'[[source.agent]]\nname = "{name}"\naddress = "{address}"\nhost_key = "{host_key}"\n'


class Fleet:
    """A few good agents among many that never answer."""

    def __init__(self, field: Field) -> None:
        self._field = field
        field.lab.add_unresponsive_networks()
        places = [*addresses(SILENT, DEAD), *addresses(UNREACHABLE, DEAD)]
        self._dead = "".join(entry(f"dead-{place}", place, public(generate())) for place in places)

    def configure(self, *good: LabAgent) -> None:
        """Configure the dead agents and these."""
        text = f'{GROUPS}\n[[source]]\nname = "office"\ntype = "static"\ngroup = "builders"\ntrust = ["pinned"]\n'
        text += "".join(entry(agent.name, agent.ip, agent.host_key) for agent in good)
        self._field.controller.configure(text + self._dead, probe_interval="2s", head=DEFAULTS_HEAD)

    def all_failed(self) -> bool:
        """Report whether each dead agent has failed at least once."""
        agents = self._field.controller.client.agents()
        return all(agent["error"] == "unreachable" for agent in agents if agent["name"].startswith("dead-"))


def test_agents_that_never_answer_do_not_delay_others(field: Field) -> None:
    """Beside dead agents, a cut agent comes back, a new one comes up, and all come up after SIGKILL."""
    fleet, controller = Fleet(field), field.controller
    good = [field.boot(f"good-{number}") for number in range(3)]
    fleet.configure(*good)
    controller.start()
    for agent in good:
        controller.wait_phase(agent.name, "up", timeout=SOON)
    until(fleet.all_failed, "all dead agents have failed", timeout=60)

    good[0].faults.reset_connections()
    controller.wait(good[0].name, lambda agent: agent["phase"] != "up", "the cut is detected")
    controller.wait_phase(good[0].name, "up", timeout=SOON)

    new = field.boot("new")
    fleet.configure(*good, new)
    controller.client.reload()
    controller.wait_phase(new.name, "up", timeout=SOON)

    controller.kill()
    controller.start()
    for agent in (*good, new):
        controller.wait_phase(agent.name, "up", timeout=SOON)
