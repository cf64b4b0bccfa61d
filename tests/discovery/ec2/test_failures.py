"""EC2's failures: what fails is named, what was found counts, and no agent leaves because of it."""

from collections.abc import Callable

import pytest

from lab.ec2 import Ec2Service
from tests.discovery.ec2.answers import DENIED, ROLE, ids
from tunnelmgr.discovery.ec2 import Ec2Source
from tunnelmgr.errors import DiscoveryError


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


def test_a_missing_permission_to_assume_the_role_is_named(cloud: Ec2Service, source: Callable[..., Ec2Source]) -> None:
    """The failure names the permission as IAM spells it."""
    cloud.fault("AssumeRole", [("AccessDenied", 403)])

    with pytest.raises(DiscoveryError, match="AccessDenied: the permission sts:AssumeRole is missing"):
        source(role=ROLE).discover()


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
