"""Who is served first: those that were up, then new ones, then failing ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import RetryRequested
from tunnelmgr.core.persistence import Memory, restored
from tunnelmgr.core.precedence import FIRST, LAST, NEW, PROVEN, Precedence, precedence_of
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.world import STORY_LENGTH, World

if TYPE_CHECKING:
    from tests.core.conftest import Story
    from tunnelmgr.core.agent import Agent


def rank(story: Story, agent: Agent) -> int:
    """Return an agent's rank as it is now."""
    return precedence_of(story.world, agent.id).rank


def fails(story: Story, agent: Agent, times: int = 1) -> None:
    """Let an agent that is due be dialled in vain."""
    for _ in range(times):
        story.now += 100
        story.act()
        story.ended(agent)


def restarted(story: Story) -> World:
    """Return the world that a controller finds in its store after a crash."""
    return restored(Memory(story.world.records), story.now)


def test_an_agent_that_was_not_tried_is_new(story: Story) -> None:
    """It has neither failed nor been up."""
    agent = story.agent()
    story.believed(agent)

    assert rank(story, agent) == NEW
    assert not precedence_of(story.world, agent.id).failing


def test_each_failure_puts_an_agent_further_back(story: Story) -> None:
    """The first failure already puts it behind new ones."""
    agent = story.agent()
    story.believed(agent)
    fails(story, agent, 3)

    assert rank(story, agent) == NEW + 3
    assert precedence_of(story.world, agent.id).failing


def test_an_agent_that_is_lost_goes_first(story: Story) -> None:
    """Builds were using it a moment ago."""
    agent = story.agent()
    story.up(agent)
    story.now += 100
    story.ended(agent)

    assert rank(story, agent) == PROVEN


def test_an_agent_that_was_up_is_forgiven_a_failure_and_then_falls_back(story: Story) -> None:
    """Its sshd may hold the port for the lost connection still; but it is not waited for without end."""
    agent = story.agent()
    story.up(agent)
    story.now += 100
    story.ended(agent)
    ranks = []
    for _ in range(3):
        fails(story, agent)
        ranks.append(rank(story, agent))

    assert ranks == [NEW, NEW + 1, NEW + 2]


def test_an_agent_that_comes_up_and_is_lost_again_and_again_falls_back(story: Story) -> None:
    """Coming up for a moment does not buy the first place."""
    agent = story.agent()
    story.up(agent)
    story.ended(agent)
    for _ in range(5):
        story.now += 100
        story.up(agent)
        story.ended(agent)

    assert rank(story, agent) > NEW


def test_a_search_in_vain_counts_as_a_failure(story: Story) -> None:
    """Agents whose evidence is looked for on themselves are dialled for it."""
    agent = story.agent()
    story.listed(agent)
    story.world = story.world.with_tunnel(agent.id, replace(story.status(agent), failures=4))

    assert rank(story, agent) == NEW + 4


@pytest.mark.parametrize("again", ["moved", "rebuilt", "retry"])
def test_failures_from_before_another_start_do_not_count(story: Story, again: str) -> None:
    """Another address, another machine, or a person's word that it is well now."""
    agent = story.agent()
    story.believed(agent)
    fails(story, agent, 3)
    if again == "moved":
        story.listed(replace(agent, addresses=("10.0.0.9",)))
    elif again == "rebuilt":
        story.listed(replace(agent, incarnation="2"))
    else:
        story.hear(RetryRequested(agent.id))

    assert precedence_of(restarted(story), agent.id).rank == NEW


def test_failures_count_however_many_there_are(story: Story) -> None:
    """Repeated failures are one moment with a count, and the latest ones count if the story has lost its beginning."""
    agent = story.agent()
    story.believed(agent)
    fails(story, agent, STORY_LENGTH + 1)
    assert precedence_of(restarted(story), agent.id).rank == NEW + STORY_LENGTH + 1

    record = story.record(agent)
    for number in range(STORY_LENGTH):
        record = record.told(story.now, "failed", f"reason {number}")
    story.world = story.world.with_record(record)
    assert precedence_of(restarted(story), agent.id).rank == NEW + STORY_LENGTH


def test_the_order_survives_a_restart(story: Story) -> None:
    """It is derived from what is written down: the good come up first after a crash, too."""
    good, bad, new = story.agent("good"), story.agent("bad"), story.agent("new")
    story.up(good, 1)
    story.believed(bad, 2)
    fails(story, bad, 2)
    story.believed(new, 3)

    ranks = [precedence_of(restarted(story), agent.id).rank for agent in (good, new, bad)]

    assert ranks == [PROVEN, NEW, NEW + 2]


def test_openings_are_planned_in_this_order(story: Story) -> None:
    """The controller begins a few at a time, from the front."""
    good, bad, old, new = (story.agent(name) for name in ("good", "bad", "old", "new"))
    story.up(good, 1)
    story.believed(bad, 2)
    fails(story, bad, 2)
    story.believed(old, 3)
    story.now += 1
    story.believed(new, 4)
    story.ended(good)
    story.now += 100
    # `believed` begins what is due, so all but the good one's loss are taken back to rest.
    story.world = replace(
        story.world, tunnels={id_: replace(one, working=False) for id_, one in story.world.tunnels.items()}
    )

    opened = [action.agent for action in story.act() if isinstance(action, OpenTunnel)]

    assert opened == [good.id, new.id, old.id, bad.id]


def test_within_a_rank_the_newest_goes_first() -> None:
    """A build is waiting for the agent that has just appeared."""
    assert Precedence(NEW, 2.0).key < Precedence(NEW, 1.0).key < Precedence(NEW + 1, 3.0).key


def test_an_agent_that_nobody_knows_goes_last() -> None:
    """It has left while its evidence was looked for."""
    assert precedence_of(World(), AgentId("cloud:gone")) == LAST
    assert FIRST.key < LAST.key
