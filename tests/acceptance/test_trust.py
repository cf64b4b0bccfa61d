"""Host key evidence: what is accepted, remembered and refused."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.ec2 import host_key_console

if TYPE_CHECKING:
    from tests.acceptance.conftest import CloudField, Field

pytestmark = pytest.mark.acceptance


def test_the_first_key_is_pinned_across_restarts_until_released(field: "Field") -> None:
    """`tofu` accepts the first key; another key after a restart is refused until an operator releases the agent."""
    agent = field.boot("builder")
    field.static(agent, trust="tofu")
    field.controller.start()
    field.controller.wait_phase("builder", "up")
    field.controller.stop()
    agent.kill()
    field.boot("builder", agent.ip)

    field.controller.start()
    refused = field.controller.wait_phase("builder", "quarantined")
    released = field.controller.command("release", "builder", "--reason", "reinstalled")
    up = field.controller.wait_phase("builder", "up")

    assert refused["error"] == "host-key-mismatch"
    assert released.returncode == 0
    assert up["fingerprints"] != refused["fingerprints"]
    assert "reinstalled" in [moment["detail"] for moment in up["history"]]


def test_one_key_on_two_live_agents_quarantines_both(cloud_field: "CloudField", tmp_path: Path) -> None:
    """Two instances whose consoles show the same key cannot be distinguished, so neither gets a tunnel."""
    field = cloud_field
    key = tmp_path / "shared_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=10)
    ids = []
    for name in ("one", "two"):
        agent = field.boot(name, host_key=key)
        instance = field.cloud.launch(agent.ip, {"Name": name, "role": "builders"})
        field.cloud.console(
            instance, f"-----BEGIN SSH HOST KEY KEYS-----\n{agent.host_key}\n-----END SSH HOST KEY KEYS-----\n"
        )
        ids.append(f"ec2:{instance}")
    field.configure()

    field.controller.start()
    facts = [field.controller.wait_phase(id_, "quarantined") for id_ in ids]

    assert [fact["error"] for fact in facts] == ["host-key-shared", "host-key-shared"]
    assert not any(field.reaches(agent) for agent in field.agents.values())


def test_a_console_that_names_the_keys_of_others_quarantines_its_own_machine_only(cloud_field: "CloudField") -> None:
    """The tunnels that were dialled with these keys stay up, also across a restart of the controller."""
    field = cloud_field
    fleet = [field.launch(f"honest-{number}")[1] for number in range(3)]
    forgers = []
    field.configure()
    field.controller.start()
    before = [field.controller.wait_phase(id_, "up") for id_ in fleet]

    for number, victim in enumerate(before):
        id_ = field.listed(field.boot(f"forger-{number}"))
        field.cloud.console(id_.removeprefix("ec2:"), host_key_console([field.agents[victim["name"]].host_key]))
        forgers.append(id_)

    refused = [field.controller.wait_phase(id_, "quarantined") for id_ in forgers]
    assert {facts["error"] for facts in refused} == {"host-key-shared"}
    assert [field.controller.agent(id_)["since"] for id_ in fleet] == [facts["since"] for facts in before]
    field.controller.kill()
    field.controller.start()
    for id_ in fleet:
        field.controller.wait_phase(id_, "up")


def test_the_machine_that_can_show_the_key_comes_up_beside_one_that_only_names_it(cloud_field: "CloudField") -> None:
    """If both claims come before any dial, both machines are asked for the key, and the one that shows it comes up."""
    field = cloud_field
    honest, id_ = field.launch("honest")
    forger = field.listed(field.boot("forger"))
    field.cloud.console(forger.removeprefix("ec2:"), host_key_console([honest.host_key]))
    field.configure()

    field.controller.start()
    field.controller.wait_phase(id_, "up")
    refused = field.controller.wait_phase(forger, "quarantined")

    assert refused["error"] == "host-key-shared"
    assert field.reaches(honest)
    assert not field.reaches(field.agents["forger"])


def test_a_console_key_is_remembered_after_the_console_has_scrolled(cloud_field: "CloudField") -> None:
    """The console shows a key once; after a restart the pin still proves the agent."""
    field = cloud_field
    _, id_ = field.launch("builder")
    field.configure()
    field.controller.start()
    field.controller.wait_phase(id_, "up")
    field.controller.stop()
    field.cloud.console(id_.removeprefix("ec2:"), "nothing but later noise\r\n")

    field.controller.start()

    assert field.controller.wait_phase(id_, "up")["trust"] == "console"
