"""Which group an agent is in: what the configuration says, at once, and what that does to its tunnel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.events import Grouping, Reconfigured
from tunnelmgr.core.persistence import moments
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase

if TYPE_CHECKING:
    from tests.core.conftest import Story
    from tunnelmgr.core.agent import Agent


def regroup(story: Story, grouping: Grouping) -> None:
    """Read a configuration in which the cloud's agents are grouped otherwise."""
    story.hear(Reconfigured(replace(story.rules, groups={"cloud": grouping})))


def test_a_reload_that_moves_a_source_to_another_group_revokes_its_tunnels_at_once(story: Story) -> None:
    """No answer of the source is needed, nothing that is under way goes on, and the agent comes back in its group."""
    agent = story.agent(group="builders")
    story.up(agent)

    regroup(story, Grouping("ci"))

    assert story.record(agent).agent.group == "ci"
    assert story.steps(agent)[-1] == "regrouped"
    assert story.record(agent).story[-1].detail == "from builders to ci"
    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)
    story.ended(agent, pace=None)
    (opening,) = story.act()
    assert isinstance(opening, OpenTunnel)
    assert opening.spec.group == "ci"


def test_a_reload_that_leaves_the_group_as_it_is_disturbs_nobody(story: Story) -> None:
    """The same group under the same name is no change."""
    agent = story.agent()
    story.up(agent)
    before = story.record(agent)

    regroup(story, Grouping("ci"))

    assert story.record(agent) == before
    assert story.act() == ()


def test_a_tunnel_that_drains_already_is_revoked_by_another_group(story: Story) -> None:
    """What may still end under the old group is cut."""
    agent = story.agent(group="builders")
    story.up(agent)
    story.hear(Reconfigured(replace(story.rules, forwards=())))
    assert story.act() == (CloseTunnel(agent.id, 1, Manner.DRAIN),)

    regroup(story, Grouping("ci"))

    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


@pytest.mark.parametrize(
    ("grouping", "group"),
    [
        (lambda agent: Grouping("ci", {agent.id: "builders"}), "builders"),  # its own entry
        (lambda _agent: Grouping("ci", {}), "ci"),  # the entry is gone
        (lambda _agent: Grouping("ci", chosen=frozenset({"night"})), "night"),  # the source's own choice
        (lambda _agent: Grouping("ci", chosen=frozenset({"day"})), "ci"),  # a choice that is no longer there
    ],
)
def test_the_group_is_a_function_of_the_rules(story: Story, grouping: object, group: str) -> None:
    """An own entry goes before the source's choice, and that before the source's group."""
    agent = story.agent(group="night")
    story.listed(agent)

    regroup(story, grouping(agent))  # type: ignore[operator]

    assert story.record(agent).agent.group == group


def test_a_listing_cannot_put_an_agent_into_a_group_that_the_rules_do_not_name(story: Story) -> None:
    """An answer to a question from before a reload brings the old group back to nobody."""
    agent = story.agent(group="builders")
    regroup(story, Grouping("ci"))

    story.listed(agent)

    assert story.record(agent).agent.group == "ci"


def test_a_source_that_chooses_another_group_is_followed(story: Story) -> None:
    """A plug-in that groups by its own facts is believed within the groups that it names."""
    agent = story.agent(group="day")
    regroup(story, Grouping("ci", chosen=frozenset({"day", "night"})))
    story.up(agent)

    story.listed(replace(agent, group="night"))

    assert story.steps(agent)[-1] == "regrouped"
    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_evidence_is_judged_by_the_minimum_of_the_new_group(story: Story) -> None:
    """A group that wants better evidence gets no tunnel that rests on less."""
    agent = story.agent(group="ci")
    story.up(agent)
    groups, minimum = {"cloud": Grouping("release")}, {"release": Method.AUTHORITY}

    story.hear(Reconfigured(replace(story.rules, groups=groups, minimum=minimum)))

    assert story.record(agent).trust is None
    assert story.act() == (CloseTunnel(agent.id, 1, Manner.REVOKE),)


def test_agents_that_have_left_keep_the_group_that_they_left_in(story: Story) -> None:
    """What is remembered of an agent is not written again by a reload."""
    agent = story.agent(group="builders")
    story.listed(agent)
    story.listed(gone=frozenset({agent.id}))
    before = story.world

    regroup(story, Grouping("ci"))

    assert story.record(agent).agent.group == "builders"
    assert moments(before, story.world) == ()
    story.listed(agent)
    assert (story.record(agent).agent.group, story.status(agent).phase) == ("ci", Phase.AWAITING_IDENTITY)


def test_an_agent_whose_source_is_removed_leaves_in_its_last_group(story: Story) -> None:
    """Its end is told under the name by which people know it."""
    agent: Agent = story.agent(group="builders")
    story.listed(agent)

    story.hear(Reconfigured(replace(story.rules, trust={})))

    assert not story.record(agent).present
    assert story.record(agent).agent.group == "builders"
