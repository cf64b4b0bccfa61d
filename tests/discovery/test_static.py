"""Agents written in the configuration file."""

import pytest
from pydantic import ValidationError

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import Method
from tunnelmgr.discovery.static import StaticConfig, StaticSource

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 42 + "B"


def source(*agents: dict[str, object], **facts: object) -> StaticSource:
    """Return a source of these agents, as the configuration would make it."""
    return StaticSource(
        StaticConfig.model_validate({"name": "office", "type": "static", "agent": list(agents), **facts})
    )


def test_an_agent_is_identified_by_its_name() -> None:
    """The id of a static agent is its name, because the address may change."""
    entry = {"name": "builder-1", "address": "192.0.2.7", "port": 2222, "group": "builders", "host_key": KEY}

    snapshot = source(entry).discover()

    agent = Agent(
        AgentId("static:builder-1"), fingerprint(KEY), "office", "builders", "builder-1", ("192.0.2.7",), 2222
    )
    assert snapshot.agents == {agent}


def test_an_agent_that_is_not_configured_is_gone() -> None:
    """An agent that the configuration does not list has left."""
    snapshot = source().discover()

    assert snapshot.agents == frozenset()
    assert snapshot.absence_is_proof


def test_another_host_key_is_another_incarnation() -> None:
    """A new host_key is a new incarnation, so that old evidence does not count for it."""
    before, after = ({"name": "a", "address": "192.0.2.7", "host_key": key} for key in (KEY, OTHER))

    (old,), (new,) = source(before).discover().agents, source(after).discover().agents

    assert old.id == new.id
    assert old.incarnation != new.incarnation


def test_an_agent_without_a_group_is_in_the_sources_group() -> None:
    """An agent without a group is in that of its source, which knows all groups of its agents."""
    config = source(
        {"name": "a", "address": "a.example"}, {"name": "b", "address": "b.example", "group": "other"}, group="ci"
    ).config

    assert config.groups() == {"ci", "other"}


def test_pins_are_kept_without_their_comment() -> None:
    """The pinned keys have no comment, and an agent without host_key has none."""
    config = source(
        {"name": "a", "address": "192.0.2.7", "host_key": f"  {KEY}   root@a "}, {"name": "b", "address": "192.0.2.8"}
    ).config

    assert config.pinned_keys() == {AgentId("static:a"): KEY}
    assert config.trust == [Method.PINNED]


@pytest.mark.parametrize("key", ["", "ssh-ed25519", "ssh-ed25519 AAAA", KEY[:-8], f"ssh-rsa {KEY.split()[1]}", "x y z"])
def test_an_invalid_host_key_is_refused(key: str) -> None:
    """The error for an invalid host_key says what to write instead."""
    with pytest.raises(ValidationError, match="write the public host key as"):
        source({"name": "a", "address": "192.0.2.7", "host_key": key})


@pytest.mark.parametrize("address", ["", "a b", "x/y", "$(id)"])
def test_an_invalid_address_is_refused(address: str) -> None:
    """An address is a host name or an IP address."""
    with pytest.raises(ValidationError):
        source({"name": "a", "address": address})


def test_two_agents_with_one_name_are_refused() -> None:
    """Two agents with one name are refused, because one would replace the other."""
    with pytest.raises(ValidationError, match="two agents are named a"):
        source({"name": "a", "address": "192.0.2.7"}, {"name": "a", "address": "192.0.2.8"})
