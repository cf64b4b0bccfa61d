"""What a reload would do, told by `effects`, is what it does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import AgentsDiscovered, Reconfigured
from tunnelmgr.core.preview import AgentEffect, Effect, effects
from tunnelmgr.core.reconcile import CloseTunnel, Manner
from tunnelmgr.core.rules import Grouping, Rules
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Endpoint, Forward

if TYPE_CHECKING:
    from tests.core.conftest import History
    from tunnelmgr.core.agent import Agent

OTHER = Forward("cache", (Endpoint("127.0.0.1", 5001),), Endpoint("127.0.0.1", 5001))


def told(history: History, rules: Rules, *listings: AgentsDiscovered) -> list[AgentEffect]:
    """Return what a reload would do; the world stays as it is."""
    return effects(history.world, rules, listings, history.now)


def only(agent: Agent, effect: Effect, before: str = "ci", after: str = "ci") -> list[AgentEffect]:
    """Return what is told if one agent is affected."""
    return [AgentEffect(agent.id, agent.name, effect, before, after)]


def test_the_same_rules_affect_nobody(history: History) -> None:
    """Tunnels that are up, an agent without evidence and one that has left are not named."""
    left = history.agent("left")
    history.up(left)
    history.listed()
    history.listed()
    history.up(history.agent("up"))
    history.listed(history.agent("up"), history.agent("new"))
    history.act()

    assert told(history, history.rules) == []


def test_another_forward_has_each_tunnel_opened_again(history: History) -> None:
    """Transfers finish; a tunnel that is being closed already is not named."""
    stays, closing = history.agent("stays"), history.agent("closing", group="builders")
    history.up(stays)
    history.up(closing, 2)
    history.receive(Reconfigured(replace(history.rules, groups={"cloud": Grouping("ci")})))
    rules = replace(history.rules, groups={"cloud": Grouping("ci")}, forwards=(*history.rules.forwards, OTHER))

    assert told(history, rules) == only(stays, Effect.REOPENED)

    history.act()
    history.receive(Reconfigured(rules))
    assert history.act() == (CloseTunnel(stays.id, 1, Manner.DRAIN),)


def test_an_agent_that_moves_is_told_with_both_groups(history: History) -> None:
    """The end of its tunnel is implied."""
    agent = history.agent(group="builders")
    history.up(agent)

    found = told(history, replace(history.rules, groups={"cloud": Grouping("ci")}))

    assert found == only(agent, Effect.MOVES, "builders", "ci")


def test_the_agents_of_a_source_that_goes_leave(history: History) -> None:
    """They are named with the group that they had."""
    agent = history.agent()
    history.up(agent)

    assert told(history, replace(history.rules, trust={})) == only(agent, Effect.LEAVES, "ci", "")


def test_evidence_that_is_no_longer_accepted_is_lost(history: History) -> None:
    """A source that no longer trusts a method has its agents proved again."""
    agent = history.agent()
    history.up(agent)

    found = told(history, replace(history.rules, trust={"cloud": (Method.TOFU,)}))

    assert found == only(agent, Effect.LOSES_EVIDENCE)


def test_a_restricted_key_is_required_by_a_new_tunnel(history: History) -> None:
    """The tunnel is opened again with the test."""
    agent = history.agent()
    history.up(agent)

    assert told(history, replace(history.rules, restricted=frozenset({"ci"}))) == only(agent, Effect.REOPENED)


def test_a_listing_that_is_known_already_tells_who_joins_and_leaves(history: History) -> None:
    """The agents that the configuration itself names need not be asked for."""
    gone, kept, new = (history.agent(name, source="file") for name in ("gone", "kept", "new"))
    history.listed(gone, kept, source="file")
    snapshot = Snapshot(frozenset({kept, new}), absence_is_proof=True)

    found = told(history, history.rules, AgentsDiscovered("file", snapshot))

    assert {(one.agent, one.effect) for one in found} == {(gone.id, Effect.LEAVES), (new.id, Effect.JOINS)}
