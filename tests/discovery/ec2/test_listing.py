"""EC2 as a source, with the real boto3 against a fake of the API."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import ValidationError

from lab.ec2 import Ec2Service
from tests.discovery.ec2.answers import ROLE, ids
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.discovery import aws_clients, ec2
from tunnelmgr.discovery.ec2 import Ec2Config, Ec2Source


def test_a_running_instance_is_an_agent(launch: Callable[..., str], source: Callable[..., Ec2Source]) -> None:
    """A running instance is an agent with its private address, name and tags."""
    instance = launch(Name="builder", role="ci")

    snapshot = source(port=2222).discover()

    (agent,) = snapshot.agents
    assert (agent.id, agent.incarnation) == (f"ec2:{instance}", instance)
    assert (agent.source, agent.group, agent.name, agent.port) == ("jenkins", "ci", "builder", 2222)
    assert agent.addresses[0].startswith("10.77.0.")
    assert {("role", "ci"), ("tunnelmgr:zone", "eu-west-1a")} <= set(agent.labels)
    assert (snapshot.gone, snapshot.failures, snapshot.absence_is_proof) == (frozenset(), (), False)


def test_an_instance_without_a_name_is_called_by_its_id(
    launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """The name of an instance without a Name tag is its id."""
    instance = launch()

    (agent,) = source().discover().agents

    assert agent.name == instance


def test_filters_decide_which_instances_are_agents(
    launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """An instance matches a filter with any of its values."""
    wanted = {launch(kind="demand"), launch(kind="spot")}
    launch(kind="other")

    assert ids(source(filters={"tag:kind": ["demand", "spot"]}).discover().agents) == wanted


@pytest.mark.parametrize("state", ["shutting-down", "terminated", "stopping", "stopped"])
def test_an_instance_after_running_is_gone(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source], state: str
) -> None:
    """An instance after `running` is gone, although EC2 lists it for an hour."""
    instance = launch()
    cloud.state(instance, state)

    snapshot = source().discover()

    assert snapshot.agents == frozenset()
    assert snapshot.gone == {f"ec2:{instance}"}


def test_a_terminated_instance_has_no_address_and_is_gone(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """A terminated instance is listed without an address, as by the real API."""
    instance = launch()
    cloud.terminate(instance)

    assert source().discover().gone == {f"ec2:{instance}"}


def test_a_pending_instance_is_neither_an_agent_nor_gone(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """A pending instance is not an agent yet."""
    cloud.state(launch(), "pending")

    snapshot = source().discover()

    assert (snapshot.agents, snapshot.gone) == (frozenset(), frozenset())


def test_the_public_address_is_used_if_configured(launch: Callable[..., str], source: Callable[..., Ec2Source]) -> None:
    """With `address = "public"`, an instance without a public address is not an agent."""
    public = launch(public=True)
    launch()

    (agent,) = source(address="public").discover().agents

    assert agent.incarnation == public
    assert not agent.addresses[0].startswith("10.77.")


def test_all_pages_are_read(cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]) -> None:
    """A listing in several pages is complete."""
    launched = {launch() for _ in range(5)}
    cloud.page_size(2)

    assert ids(source().discover().agents) == launched


def test_several_regions_are_one_snapshot(launch: Callable[..., str], source: Callable[..., Ec2Source]) -> None:
    """The snapshot has the agents of every region."""
    launched = {launch("eu-west-1"), launch("us-east-1")}

    snapshot = source(regions=["eu-west-1", "us-east-1", "ap-south-1"]).discover()

    assert ids(snapshot.agents) == launched
    assert snapshot.failures == ()


# --- a role ---


def test_a_role_is_assumed_once_for_all_regions(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """The credentials of a role are kept from poll to poll."""
    launched = {launch("eu-west-1"), launch("us-east-1")}
    before = cloud.calls("AssumeRole")
    lent = source(role=ROLE, regions=["eu-west-1", "us-east-1"])

    snapshots = [lent.discover(), lent.discover()]

    assert [ids(snapshot.agents) for snapshot in snapshots] == [launched] * 2
    assert cloud.calls("AssumeRole") == before + 1


def test_a_role_is_renewed_before_it_expires(
    cloud: Ec2Service, source: Callable[..., Ec2Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials of a role are renewed before they expire after an hour."""
    before = cloud.calls("AssumeRole")
    lent = source(role=ROLE)
    lent.discover()

    monkeypatch.setattr(aws_clients, "_RENEW_BEFORE", timedelta(days=1))
    lent.discover()

    assert cloud.calls("AssumeRole") == before + 2


# --- those that a listing lacks ---


def test_instances_that_an_empty_listing_lacks_are_found_by_their_ids(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """A filter by id finds instances beside an unknown id, and one of them has ended."""
    there, ended = launch(), launch()
    jenkins = source()
    agents = {agent.incarnation: agent for agent in jenkins.discover().agents}
    cloud.empty_listings()
    cloud.terminate(ended)
    unknown = replace(agents[there], id=AgentId("ec2:i-0123456789abcdef0"), incarnation="i-0123456789abcdef0")

    assert jenkins.discover() == Snapshot(frozenset())
    found = jenkins.find_by_id([agents[there], agents[ended], unknown])

    assert found == Snapshot(frozenset({agents[there]}), frozenset({AgentId(f"ec2:{ended}")}))
    assert jenkins.console_output(agents[there]) == ""


def test_instances_with_changed_tags_are_outside(launch: Callable[..., str], source: Callable[..., Ec2Source]) -> None:
    """Nothing is known of an excluded instance with unchanged tags: the filters may be new, or EC2 may be wrong."""
    launch(role="ci")
    (agent,) = source().discover().agents
    other = source(filters={"tag:role": ["builders"]})
    retagged = replace(agent, labels=(("role", "builders"),))

    assert other.find_by_id([agent]) == Snapshot(frozenset())
    assert other.find_by_id([retagged]) == Snapshot(frozenset(), outside=frozenset({agent.id}))


def test_many_instances_are_requested_in_several_calls(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC2 takes a limited number of values in a filter."""
    monkeypatch.setattr(ec2, "FILTER_VALUES", 2)
    for _ in range(5):
        launch()
    jenkins = source()
    agents = list(jenkins.discover().agents)
    before = cloud.calls("DescribeInstances")

    assert jenkins.find_by_id(agents).agents == set(agents)
    assert cloud.calls("DescribeInstances") == before + 3


# --- its configuration ---


@pytest.mark.parametrize("url", ["http://", "http://[", "ftp://x", "127.0.0.1:5556", "https:///path"])
def test_an_endpoint_has_to_be_a_url(url: str) -> None:
    """An endpoint that is not a URL is refused in the configuration."""
    with pytest.raises(ValidationError):
        Ec2Config.model_validate({"name": "x", "type": "ec2", "regions": ["eu-west-1"], "endpoint_url": url})


@pytest.mark.parametrize("regions", [[], ["Eu West"], "eu-west-1"])
def test_regions_are_a_list_of_names(regions: object) -> None:
    """At least one region is required."""
    with pytest.raises(ValidationError):
        Ec2Config.model_validate({"name": "x", "type": "ec2", "regions": regions})
