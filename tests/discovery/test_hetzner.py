"""Servers of Hetzner Cloud become agents; with the real hcloud against a stateful fake of the API."""

from pathlib import Path

import pytest
import structlog

from lab.hetzner import HetznerCloud, HetznerService
from tests.discovery.hetzner_project import Make, Polled, gone, ids, only
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.discovery.hetzner import HetznerConfig


def test_a_server_becomes_an_agent(cloud: HetznerCloud, make: Make) -> None:
    """The id has the project and the server, the incarnation is the creation time, and other facts are as listed."""
    id_ = cloud.launch("ci-1", "192.0.2.7", {"role": "ci", "arch": "arm64"})

    agent = only(make(group="builders", port=2222).discover())

    assert agent.id == f"hetzner:hetzner:{id_}"
    assert agent.incarnation.endswith("+00:00")
    assert (agent.source, agent.group, agent.name) == ("hetzner", "builders", "ci-1")
    assert (agent.addresses, agent.port) == (("192.0.2.7",), 2222)
    assert agent.labels == (("arch", "arm64"), ("role", "ci"))
    assert not agent.rebuilding


def test_an_ipv6_network_gives_its_first_host_address_after_the_ipv4_one(cloud: HetznerCloud, make: Make) -> None:
    """IPv4 is preferred; of a server's /64, the image configures `::1`."""
    cloud.launch("both", "192.0.2.7", ipv6="2001:db8:1:2::/64")

    assert only(make().discover()).addresses == ("192.0.2.7", "2001:db8:1:2::1")


def test_a_server_without_ipv4_is_reached_by_ipv6(cloud: HetznerCloud, make: Make) -> None:
    """`public_net.ipv4` may be null, and the IPv6 address is used."""
    cloud.launch("modern", None, ipv6="2001:db8:1:2::/64")

    assert only(make().discover()).addresses == ("2001:db8:1:2::1",)


def test_the_private_address_is_used_if_configured(cloud: HetznerCloud, make: Make) -> None:
    """With `address = "private"`, only the address in the private network is used."""
    cloud.launch("inside", "192.0.2.7", private="10.0.0.3")

    assert only(make(address="private").discover()).addresses == ("10.0.0.3",)


def test_a_server_without_such_an_address_is_left_out_and_logged_once(cloud: HetznerCloud, make: Make) -> None:
    """A server that cannot be reached is not an agent, and the log names it once."""
    id_ = cloud.launch("outside", "192.0.2.7")
    source = make(address="private")

    with structlog.testing.capture_logs() as lines:
        snapshots = [source.discover(), source.discover()]

    assert [snapshot.agents for snapshot in snapshots] == [frozenset(), frozenset()]
    assert [(line["event"], line["server"]) for line in lines] == [("server has no such address", id_)]


@pytest.mark.parametrize("status", ["running", "starting", "migrating", "unknown", "rebuilding"])
def test_servers_in_these_states_are_agents(cloud: HetznerCloud, make: Make, status: str) -> None:
    """A starting server and one in an unusual state have not ended."""
    id_ = cloud.launch("ci-1", "192.0.2.7")
    cloud.state(id_, status)

    snapshot = make().discover()

    assert (ids(snapshot), gone(snapshot)) == ([id_], [])


@pytest.mark.parametrize("status", ["stopping", "off", "deleting"])
def test_servers_in_these_states_are_gone(cloud: HetznerCloud, make: Make, status: str) -> None:
    """A server that is off or about to be is gone at once."""
    id_ = cloud.launch("ci-1", "192.0.2.7")
    cloud.state(id_, status)

    snapshot = make().discover()

    assert (ids(snapshot), gone(snapshot)) == ([], [id_])


def test_an_initializing_server_is_not_an_agent_yet(cloud: HetznerCloud, make: Make) -> None:
    """An initializing server is neither an agent nor gone."""
    cloud.state(cloud.launch("ci-1", "192.0.2.7"), "initializing")

    assert make().discover() == Snapshot(frozenset())


def test_a_rebuilding_server_is_marked(cloud: HetznerCloud, make: Make) -> None:
    """The id stays while the server becomes another machine, so the agent is marked as rebuilding."""
    id_ = cloud.launch("ci-1", "192.0.2.7")
    source = make()

    before = only(source.discover())
    cloud.rebuild(id_)
    during = only(source.discover())
    cloud.state(id_, "running")
    after = only(source.discover())

    assert [agent.rebuilding for agent in (before, during, after)] == [False, True, False]
    assert before == after


def test_a_reused_name_and_address_are_another_agent(cloud: HetznerCloud, make: Make) -> None:
    """Only the id counts: the old agent is gone at once, although its name is listed."""
    source = Polled(make())
    first = cloud.launch("ci-1", "192.0.2.7")
    source.poll()
    cloud.delete(first)

    second = cloud.launch("ci-1", "192.0.2.7")
    snapshot = source.poll()

    assert first != second
    assert (ids(snapshot), gone(snapshot)) == ([second], [first])


def test_two_projects_are_distinguished(cloud: HetznerCloud, make: Make, token_file: Path) -> None:
    """Servers with equal ids in two projects are different agents."""
    with HetznerCloud() as other:
        same = (cloud.launch("ci-1", "192.0.2.7"), other.launch("ci-1", "192.0.2.8"))
        one = only(make(project="one").discover())
        two = only(make(project="two", endpoint_url=other.endpoint, token_file=str(token_file)).discover())

    assert same[0] == same[1]
    assert (one.id, two.id) == (f"hetzner:one:{same[0]}", f"hetzner:two:{same[1]}")
    assert (one.address, two.address) == ("192.0.2.7:22", "192.0.2.8:22")


def test_the_configuration_has_defaults_that_work(make: Make) -> None:
    """The project has the name of the source, and the trust method is seeded."""
    config = make(name="falkenstein").config

    assert isinstance(config, HetznerConfig)
    assert (config.project, config.trust, config.address) == ("falkenstein", [Method.SEEDED], "public")


def test_the_fake_runs_as_a_process_too(make: Make, cloud: HetznerCloud, tmp_path: Path) -> None:
    """The fake API in a process of its own takes the same commands over HTTP."""
    cloud.stop()

    with HetznerService(None, cloud.port, tmp_path) as service:
        first = service.launch("ci-1", "192.0.2.7", {"role": "ci"})
        second = service.launch("ci-2", None, ipv6="2001:db8::/64")
        source = Polled(make())
        before = source.poll()
        service.delete(first)
        service.rebuild(second)
        after = source.poll()
        asked = service.requests

    assert ids(before) == [first, second]
    assert (gone(after), only(after).rebuilding) == ([first], True)
    assert asked[-1] == f"GET /v1/servers/{first}"
