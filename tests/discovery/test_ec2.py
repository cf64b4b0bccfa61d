"""EC2 as a source, with the real boto3 against a fake of the API."""

from __future__ import annotations

import itertools
import socket
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from botocore.config import Config as BotoConfig
from pydantic import ValidationError

from lab.ec2 import Ec2Service, host_key_console
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.discovery import aws_clients, ec2
from tunnelmgr.discovery.ec2 import Ec2Config, Ec2Source
from tunnelmgr.errors import DiscoveryError, HostKeyUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DENIED = ("UnauthorizedOperation", 403)
ROLE = "arn:aws:iam::123456789012:role/tunnelmgr"
HOSTS = itertools.count(10)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2Service]:
    """Run one fake API for all tests here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Ec2Service(None, port, tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud


@pytest.fixture
def cloud(api: Ec2Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Service]:
    """Return the fake API without faults, with credentials for it in the environment."""
    for name, value in api.environment.items():
        monkeypatch.setenv(name, value)
    yield api
    api.clear_faults()
    api.page_size(0)


@pytest.fixture
def launch(cloud: Ec2Service, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return a function that launches an instance which only this test's source lists."""

    def launched(region: str = "eu-west-1", *, public: bool = False, **tags: str) -> str:
        own = {"test": request.node.name, **tags}
        return cloud.launch(f"10.77.0.{next(HOSTS)}", own, region=region, public=public)

    return launched


@pytest.fixture
def source(cloud: Ec2Service, request: pytest.FixtureRequest) -> Callable[..., Ec2Source]:
    """Return a function that makes a source which lists this test's instances."""

    def made(**facts: object) -> Ec2Source:
        usual = {
            "name": "jenkins",
            "type": "ec2",
            "group": "ci",
            "regions": ["eu-west-1"],
            "filters": {"tag:test": [request.node.name]},
            "endpoint_url": cloud.endpoint,
        }
        return Ec2Source(Ec2Config.model_validate(usual | facts))

    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after one attempt of a third of a second."""
    hasty = BotoConfig(read_timeout=0.3, retries={"mode": "adaptive", "total_max_attempts": 1})
    monkeypatch.setattr(aws_clients, "_CLIENT", aws_clients._CLIENT.merge(hasty))


def ids(agents: frozenset[Agent]) -> set[str]:
    """Return the ids of the instances."""
    return {agent.incarnation for agent in agents}


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
    """With `address = "public"`, an instance without a public address is no agent."""
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


def test_a_region_that_fails_leaves_the_others_and_is_named(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """If one region fails, the snapshot names it and is incomplete, so that no agent leaves."""
    by_region = {region: launch(region) for region in ("eu-west-1", "us-east-1")}
    cloud.fault("DescribeInstances", [DENIED])

    snapshot = source(regions=list(by_region)).discover()

    (failure,) = snapshot.failures
    failed = failure.split(": ")[0]
    assert ids(snapshot.agents) == {instance for region, instance in by_region.items() if region != failed}
    assert failure == f"{failed}: UnauthorizedOperation: the permission ec2:DescribeInstances is missing"


def test_without_any_answer_there_is_no_snapshot(cloud: Ec2Service, source: Callable[..., Ec2Source]) -> None:
    """If no region answers, that is a failure and not an empty fleet."""
    cloud.fault("DescribeInstances", [DENIED], forever=True)

    with pytest.raises(DiscoveryError, match="permission ec2:DescribeInstances is missing") as failed:
        source(regions=["eu-west-1", "us-east-1"]).discover()

    assert failed.value.source == "jenkins"
    assert "eu-west-1" in failed.value.reason
    assert "us-east-1" in failed.value.reason


def test_pages_before_a_failure_count(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """Agents on earlier pages count, missing ones are not gone, and consoles can be read already."""
    launched = {launch() for _ in range(3)}
    cloud.page_size(1)
    cloud.fault("DescribeInstances", [DENIED], later_pages=True)
    half = source()

    snapshot = half.discover()

    (agent,) = snapshot.agents
    assert agent.incarnation in launched
    assert len(snapshot.failures) == 1
    assert half.console_output(agent) == ""


def test_a_throttled_call_is_retried(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """One RequestLimitExceeded is not a failure."""
    instance = launch()
    before = cloud.calls("DescribeInstances")
    cloud.fault("DescribeInstances", [("RequestLimitExceeded", 503)])

    snapshot = source().discover()

    assert ids(snapshot.agents) == {instance}
    assert cloud.calls("DescribeInstances") == before + 2


@pytest.mark.usefixtures("impatient")
def test_a_region_that_keeps_throttling_fails(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """A region that throttles every attempt is a failure and not an empty fleet."""
    launch()
    cloud.fault("DescribeInstances", [("RequestLimitExceeded", 503)], forever=True)

    with pytest.raises(DiscoveryError, match="RequestLimitExceeded"):
        source().discover()


@pytest.mark.usefixtures("impatient")
def test_a_region_that_stalls_fails(cloud: Ec2Service, source: Callable[..., Ec2Source]) -> None:
    """Every call has a deadline."""
    cloud.fault("DescribeInstances", [("", 200)], stall=20, forever=True)

    with pytest.raises(DiscoveryError, match="Read timeout"):
        source().discover()


def test_an_unreachable_api_is_a_failure(source: Callable[..., Ec2Source], impatient: None) -> None:  # noqa: ARG001 - its effect is wanted
    """The failure has the address of the API."""
    with pytest.raises(DiscoveryError, match="Could not connect to the endpoint URL"):
        source(endpoint_url="http://127.0.0.1:1").discover()


def test_without_credentials_the_message_says_where_they_come_from(
    source: Callable[..., Ec2Source], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """The failure without credentials names the ways to provide them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")

    with pytest.raises(DiscoveryError, match="no AWS credentials: use an instance profile"):
        source().discover()


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


def test_a_missing_permission_to_assume_the_role_is_named(cloud: Ec2Service, source: Callable[..., Ec2Source]) -> None:
    """The failure names the permission as IAM spells it."""
    cloud.fault("AssumeRole", [("AccessDenied", 403)])

    with pytest.raises(DiscoveryError, match="AccessDenied: the permission sts:AssumeRole is missing"):
        source(role=ROLE).discover()


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


def test_a_failed_request_by_id_is_reported(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """Instances whose state is unknown are neither agents nor gone."""
    launch()
    jenkins = source()
    agents = list(jenkins.discover().agents)
    cloud.fault("DescribeInstances", [("UnauthorizedOperation", 403)])

    found = jenkins.find_by_id(agents)

    assert (found.agents, found.gone, found.outside) == (frozenset(), frozenset(), frozenset())
    assert "ec2:DescribeInstances" in found.failures[0]


# --- the console ---


def test_the_console_is_read_as_text(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """The console's output is decoded once."""
    cloud.console(launch(), "line one\r\nline two\r\n")
    jenkins = source()
    (agent,) = jenkins.discover().agents

    assert jenkins.console_output(agent) == "line one\r\nline two\r\n"


def test_a_console_without_output_yet_is_empty(launch: Callable[..., str], source: Callable[..., Ec2Source]) -> None:
    """The API leaves out the output of an empty console."""
    launch()
    jenkins = source()
    (agent,) = jenkins.discover().agents

    assert jenkins.console_output(agent) == ""


@pytest.mark.parametrize("code", ["UnsupportedOperation", "InvalidParameterCombination"])
def test_without_latest_output_that_of_the_boot_is_read(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source], code: str
) -> None:
    """Only Nitro instances have the latest output."""
    cloud.console(launch(), "as it booted")
    jenkins = source()
    (agent,) = jenkins.discover().agents
    cloud.fault("GetConsoleOutput", [(code, 400)])

    assert jenkins.console_output(agent) == "as it booted"


def test_a_console_that_may_have_lost_its_beginning_is_refused(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """EC2 keeps the last 64 KB, so a program could scroll the true block away and print another one."""
    instance = launch()
    jenkins = source()
    (agent,) = jenkins.discover().agents
    forged = "[    0.000000] Linux version 6.1.0\r\n" + host_key_console(["ssh-ed25519 AAAA"])

    for full in ("x" * (64_000 - len(forged)) + forged, "ö" * 31_000 + forged):
        cloud.console(instance, full)
        with pytest.raises(HostKeyUnknownError, match="EC2 keeps the last 64 KB only"):
            jenkins.console_output(agent)

    cloud.console(instance, "x" * (60_000 - len(forged)) + forged)
    assert jenkins.console_output(agent).endswith(forged)


def test_a_missing_permission_to_read_consoles_is_named(
    cloud: Ec2Service, launch: Callable[..., str], source: Callable[..., Ec2Source]
) -> None:
    """The reason of `awaiting-identity` names the permission."""
    launch()
    jenkins = source()
    (agent,) = jenkins.discover().agents
    cloud.fault("GetConsoleOutput", [DENIED])

    with pytest.raises(HostKeyUnknownError, match="the permission ec2:GetConsoleOutput is missing"):
        jenkins.console_output(agent)


def test_the_console_of_an_agent_from_before_a_restart_waits_for_its_region(source: Callable[..., Ec2Source]) -> None:
    """After a restart, the region of an agent is unknown until the first listing."""
    agent = Agent(AgentId("ec2:i-0"), "i-0", "jenkins", "ci", "a", ("10.0.0.1",))

    with pytest.raises(HostKeyUnknownError, match="its region has not answered yet"):
        source().console_output(agent)


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
