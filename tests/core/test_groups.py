"""Which group an agent is in: what the configuration says, at once, and what that does to its tunnel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import Reconfigured
from tunnelmgr.core.persistence import new_entries
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.core.rules import Grouping
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase

if TYPE_CHECKING:
    from tests.core.conftest import History
    from tunnelmgr.core.agent import Agent


def regroup(history: History, grouping: Grouping) -> None:
    """Read a configuration in which the cloud's agents are grouped otherwise."""
    history.receive(Reconfigured(replace(history.rules, groups={"cloud": grouping})))


def test_a_reload_that_moves_a_source_to_another_group_revokes_its_tunnels_at_once(history: History) -> None:
    """A reload that changes a source's group revokes its tunnels before the source answers, and opens them again."""
    agent = history.agent(group="builders")
    history.up(agent)

    regroup(history, Grouping("ci"))

    assert history.record(agent).agent.group == "ci"
    assert history.steps(agent)[-1] == "regrouped"
    assert history.record(agent).history[-1].detail == "from builders to ci"
    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)
    history.ended(agent, pace=None)
    (opening,) = history.act()
    assert isinstance(opening, OpenTunnel)
    assert opening.spec.group == "ci"


def test_a_reload_that_keeps_the_group_affects_no_tunnel(history: History) -> None:
    """A reload that keeps an agent's group does nothing to its tunnel."""
    agent = history.agent()
    history.up(agent)
    before = history.record(agent)

    regroup(history, Grouping("ci"))

    assert history.record(agent) == before
    assert history.act() == ()


def test_a_draining_tunnel_is_revoked_by_a_change_of_group(history: History) -> None:
    """A change of group revokes a tunnel that is already draining."""
    agent = history.agent(group="builders")
    history.up(agent)
    history.receive(Reconfigured(replace(history.rules, forwards=())))
    assert history.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)

    regroup(history, Grouping("ci"))

    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


@pytest.mark.parametrize(
    ("grouping", "group"),
    [
        (lambda agent: Grouping("ci", {agent.id: "builders"}), "builders"),  # its own entry
        (lambda _agent: Grouping("ci", {}), "ci"),  # the entry is gone
        (lambda _agent: Grouping("ci", chosen=frozenset({"night"})), "night"),  # the source's own choice
        (lambda _agent: Grouping("ci", chosen=frozenset({"day"})), "ci"),  # a choice that is no longer there
    ],
)
def test_the_group_is_a_function_of_the_rules(history: History, grouping: object, group: str) -> None:
    """An agent's own group comes before the source's choice, and that before the source's usual group."""
    agent = history.agent(group="night")
    history.listed(agent)

    regroup(history, grouping(agent))  # type: ignore[operator]

    assert history.record(agent).agent.group == group


def test_a_listing_cannot_put_an_agent_into_a_group_that_the_rules_do_not_name(history: History) -> None:
    """A late listing from before a reload does not bring back a group that the rules do not name."""
    agent = history.agent(group="builders")
    regroup(history, Grouping("ci"))

    history.listed(agent)

    assert history.record(agent).agent.group == "ci"


def test_a_source_that_chooses_another_group_is_followed(history: History) -> None:
    """A source may move an agent between the groups that the rules let it choose."""
    agent = history.agent(group="day")
    regroup(history, Grouping("ci", chosen=frozenset({"day", "night"})))
    history.up(agent)

    history.listed(replace(agent, group="night"))

    assert history.steps(agent)[-1] == "regrouped"
    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_evidence_is_judged_by_the_minimum_of_the_new_group(history: History) -> None:
    """A move to a group with a higher minimum drops evidence that is too weak for it."""
    agent = history.agent(group="ci")
    history.up(agent)
    groups, minimum = {"cloud": Grouping("release")}, {"release": Method.AUTHORITY}

    history.receive(Reconfigured(replace(history.rules, groups=groups, minimum=minimum)))

    assert history.record(agent).trust is None
    assert history.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_agents_that_have_left_keep_the_group_that_they_left_in(history: History) -> None:
    """A reload does not change the group of agents that have left."""
    agent = history.agent(group="builders")
    history.listed(agent)
    history.listed(gone=frozenset({agent.id}))
    before = history.world

    regroup(history, Grouping("ci"))

    assert history.record(agent).agent.group == "builders"
    assert new_entries(before, history.world) == ()
    history.listed(agent)
    assert (history.record(agent).agent.group, history.status(agent).phase) == ("ci", Phase.AWAITING_IDENTITY)


def test_an_agent_whose_source_is_removed_leaves_in_its_last_group(history: History) -> None:
    """An agent whose source is removed leaves with the group that it had."""
    agent: Agent = history.agent(group="builders")
    history.listed(agent)

    history.receive(Reconfigured(replace(history.rules, trust={})))

    assert not history.record(agent).present
    assert history.record(agent).agent.group == "builders"
