"""Which agent is served first: those that were up, then new ones, then failing ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import RetryRequested
from tunnelmgr.core.persistence import StoredState, restored
from tunnelmgr.core.precedence import FIRST, LAST, NEW, PROVEN, Precedence, precedence_of
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.tunnel import Phase, Resting
from tunnelmgr.core.world import HISTORY_LENGTH, World

if TYPE_CHECKING:
    from tests.core.conftest import History
    from tunnelmgr.core.agent import Agent


def rank(history: History, agent: Agent) -> int:
    """Return an agent's rank as it is now."""
    return precedence_of(history.world, agent.id).rank


def fails(history: History, agent: Agent, times: int = 1) -> None:
    """Let a dial of an agent that is due fail."""
    for _ in range(times):
        history.now += 100
        history.act()
        history.ended(agent)


def restarted(history: History) -> World:
    """Return the world that a controller finds in its store after a crash."""
    return restored(StoredState(history.world.records), history.now)


def test_an_agent_that_was_not_tried_is_new(history: History) -> None:
    """An agent that was not tried has the rank of new agents."""
    agent = history.agent()
    history.believed(agent)

    assert rank(history, agent) == NEW
    assert not precedence_of(history.world, agent.id).failing


def test_each_failure_puts_an_agent_further_back(history: History) -> None:
    """Each failure adds one to the rank, so the first already puts an agent behind new ones."""
    agent = history.agent()
    history.believed(agent)
    fails(history, agent, 3)

    assert rank(history, agent) == NEW + 3
    assert precedence_of(history.world, agent.id).failing


def test_an_agent_whose_tunnel_was_lost_goes_first(history: History) -> None:
    """An agent whose tunnel was just lost comes first, because builds were using it."""
    agent = history.agent()
    history.up(agent)
    history.now += 100
    history.ended(agent)

    assert rank(history, agent) == PROVEN


def test_an_agent_that_was_up_is_forgiven_a_failure_and_then_falls_back(history: History) -> None:
    """An agent that was up ranks with new agents after one failure, and falls back with each further one."""
    agent = history.agent()
    history.up(agent)
    history.now += 100
    history.ended(agent)
    ranks = []
    for _ in range(3):
        fails(history, agent)
        ranks.append(rank(history, agent))

    assert ranks == [NEW, NEW + 1, NEW + 2]


def test_an_agent_that_comes_up_and_is_lost_again_and_again_falls_back(history: History) -> None:
    """An agent whose tunnel comes up only briefly falls back with each loss."""
    agent = history.agent()
    history.up(agent)
    history.ended(agent)
    for _ in range(5):
        history.now += 100
        history.up(agent)
        history.ended(agent)

    assert rank(history, agent) > NEW


def test_a_failed_search_counts_as_a_failure(history: History) -> None:
    """Failed searches for evidence count for the rank as failed dials do."""
    agent = history.agent()
    history.listed(agent)
    history.world = history.world.with_tunnel(agent.id, replace(history.status(agent), failures=4))

    assert rank(history, agent) == NEW + 4


@pytest.mark.parametrize("again", ["moved", "rebuilt", "retry"])
def test_failures_before_a_new_start_do_not_count(history: History, again: str) -> None:
    """Failures before a move, a rebuild or a requested retry do not count."""
    agent = history.agent()
    history.believed(agent)
    fails(history, agent, 3)
    if again == "moved":
        history.listed(replace(agent, addresses=("10.0.0.9",)))
    elif again == "rebuilt":
        history.listed(replace(agent, incarnation="2"))
    else:
        history.receive(RetryRequested(agent.id))

    assert precedence_of(restarted(history), agent.id).rank == NEW


def test_failures_count_however_many_there_are(history: History) -> None:
    """Failures count by the entry's count, also if the history has lost what was before them."""
    agent = history.agent()
    history.believed(agent)
    fails(history, agent, HISTORY_LENGTH + 1)
    assert precedence_of(restarted(history), agent.id).rank == NEW + HISTORY_LENGTH + 1

    record = history.record(agent)
    for number in range(HISTORY_LENGTH):
        record = record.with_step(history.now, "failed", f"reason {number}")
    history.world = history.world.with_record(record)
    assert precedence_of(restarted(history), agent.id).rank == NEW + HISTORY_LENGTH


def test_the_order_survives_a_restart(history: History) -> None:
    """The order is the same after a restart, because it is derived from what is stored."""
    good, bad, new = history.agent("good"), history.agent("bad"), history.agent("new")
    history.up(good, 1)
    history.believed(bad, 2)
    fails(history, bad, 2)
    history.believed(new, 3)

    ranks = [precedence_of(restarted(history), agent.id).rank for agent in (good, new, bad)]

    assert ranks == [PROVEN, NEW, NEW + 2]


def test_openings_are_planned_in_this_order(history: History) -> None:
    """`plan` orders openings by precedence."""
    good, bad, old, new = (history.agent(name) for name in ("good", "bad", "old", "new"))
    history.up(good, 1)
    history.believed(bad, 2)
    fails(history, bad, 2)
    history.believed(old, 3)
    history.now += 1
    history.believed(new, 4)
    history.ended(good)
    history.now += 100
    # `believed` begins what is due, so all but the good one's loss are taken back to rest.
    history.world = replace(
        history.world,
        tunnels={
            id_: Resting(Phase.DOWN, one.since, one.life, one.failures) for id_, one in history.world.tunnels.items()
        },
    )

    opened = [action.agent for action in history.act() if isinstance(action, OpenTunnel)]

    assert opened == [good.id, new.id, old.id, bad.id]


def test_within_a_rank_the_newest_goes_first() -> None:
    """Within a rank, the agent that appeared last goes first."""
    assert Precedence(NEW, -2.0) < Precedence(NEW, -1.0) < Precedence(NEW + 1, -3.0)


def test_an_unknown_agent_goes_last() -> None:
    """An agent that left while its evidence was sought goes last."""
    assert precedence_of(World(), AgentId("cloud:gone")) == LAST
    assert FIRST < LAST
