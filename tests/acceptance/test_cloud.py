"""A cloud that fails costs no tunnel; a cloud that reports an agent as gone ends its tunnel."""

import json
from typing import TYPE_CHECKING, Any

import pytest

from lab.processes import until

if TYPE_CHECKING:
    from tests.acceptance.conftest import CloudField

pytestmark = pytest.mark.acceptance


def two_up(field: "CloudField") -> list[str]:
    """Start two instances, wait until they are up, and return their agent ids."""
    ids = [field.launch(name)[1] for name in ("one", "two")]
    field.configure()
    field.controller.start()
    for id_ in ids:
        field.controller.wait_phase(id_, "up")
    return ids


def source(field: "CloudField") -> dict[str, Any]:
    """Return the state of the builders' source."""
    found: dict[str, Any] = field.controller.client.status()["sources"][0]
    return found


def lives(field: "CloudField", ids: list[str]) -> list[int]:
    """Return how often each agent has been dialled."""
    return [sum(moment["step"] == "dialled" for moment in field.controller.agent(id_)["history"]) for id_ in ids]


@pytest.mark.parametrize(
    ("code", "status"), [("RequestLimitExceeded", 503), ("InternalError", 500), ("UnauthorizedOperation", 403)]
)
def test_a_failing_api_is_not_an_empty_fleet(cloud_field: "CloudField", code: str, status: int) -> None:
    """If the API is throttled, broken or forbidden, the source is shown as failing and every tunnel stays up."""
    ids = two_up(cloud_field)

    cloud_field.cloud.fault("DescribeInstances", [(code, status)], forever=True)
    until(lambda: not source(cloud_field)["ok"], "the source is shown as failing", timeout=45)
    calls = cloud_field.cloud.calls("DescribeInstances")
    until(lambda: cloud_field.cloud.calls("DescribeInstances") > calls + 2, "the API is called again", timeout=45)

    assert code in source(cloud_field)["error"]
    assert [cloud_field.controller.agent(id_)["phase"] for id_ in ids] == ["up", "up"]
    assert lives(cloud_field, ids) == [1, 1]


def test_half_an_answer_removes_no_agent(cloud_field: "CloudField") -> None:
    """A listing that breaks off after its first page does not count as complete."""
    ids = two_up(cloud_field)

    cloud_field.cloud.page_size(1)
    cloud_field.cloud.fault("DescribeInstances", [("InternalError", 500)], forever=True, later_pages=True)
    until(lambda: not source(cloud_field)["ok"], "the source is shown as failing", timeout=45)

    assert [cloud_field.controller.agent(id_)["phase"] for id_ in ids] == ["up", "up"]
    assert lives(cloud_field, ids) == [1, 1]


def test_a_start_while_the_api_fails_restores_the_fleet_from_the_state(cloud_field: "CloudField") -> None:
    """The state file has the agents and their keys, so a cloud that does not answer costs no tunnel."""
    ids = two_up(cloud_field)
    cloud_field.controller.stop()
    cloud_field.cloud.fault("DescribeInstances", [("InternalError", 500)], forever=True)

    cloud_field.controller.start()

    for id_ in ids:
        cloud_field.controller.wait_phase(id_, "up")


def test_empty_listings_that_succeed_remove_no_agent(cloud_field: "CloudField") -> None:
    """Missing agents are found by their ids; `status` and the log report the listing until it is whole again."""
    ids = two_up(cloud_field)

    cloud_field.cloud.empty_listings()
    until(lambda: not source(cloud_field)["ok"], "the source is shown as failing")
    calls = cloud_field.cloud.calls("DescribeInstances")
    until(lambda: cloud_field.cloud.calls("DescribeInstances") > calls + 20, "the API is called again", timeout=45)

    assert source(cloud_field)["missing"] == 2
    assert "its listing lacks 2 of 2 agents: 2 were found by their ids" in source(cloud_field)["error"]
    assert cloud_field.controller.command("status").returncode == 1
    assert "listing incomplete" in cloud_field.controller.log()
    assert lives(cloud_field, ids) == [1, 1]
    cloud_field.cloud.clear_faults()
    until(lambda: source(cloud_field)["ok"], "the source is ok again")
    assert [cloud_field.controller.agent(id_)["phase"] for id_ in ids] == ["up", "up"]


def test_a_fleet_that_is_scaled_to_zero_is_gone_at_once(cloud_field: "CloudField") -> None:
    """Requested by id, EC2 reports that the instances have ended, even if its listing is empty."""
    ids = two_up(cloud_field)

    cloud_field.cloud.empty_listings()
    for id_ in ids:
        cloud_field.cloud.terminate(id_.removeprefix("ec2:"))

    until(lambda: not cloud_field.controller.client.agents(), "no agent is left", timeout=15)


def test_a_terminated_instance_loses_its_tunnel_at_the_next_listing(cloud_field: "CloudField") -> None:
    """An instance that is listed as terminated is revoked, although it stays in the listing for an hour."""
    ids = two_up(cloud_field)
    agent = cloud_field.agents["one"]

    cloud_field.cloud.terminate(ids[0].removeprefix("ec2:"))

    until(lambda: not agent.listeners(5000), "the listener is closed")
    until(lambda: [facts["agent"] for facts in cloud_field.controller.client.agents()] == [ids[1]], "it is not listed")
    assert not cloud_field.reaches(agent)


def test_an_instance_that_two_whole_listings_lack_is_gone(cloud_field: "CloudField") -> None:
    """An instance that disappeared from the listing leaves, and stays in `list --all` with its history."""
    ids = two_up(cloud_field)

    cloud_field.cloud.forget(ids[0].removeprefix("ec2:"))

    until(lambda: len(cloud_field.controller.client.agents()) == 1, "one agent is left", timeout=15)
    everything = json.loads(cloud_field.controller.command("list", "--all", "--json").stdout)
    gone = next(facts for facts in everything if facts["agent"] == ids[0])
    assert not gone["present"]
    assert not cloud_field.agents["one"].listeners(5000)
