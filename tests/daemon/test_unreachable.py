"""Which agents a member offers to another one because it cannot reach them, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.events import TunnelDialled, TunnelEnded
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.ownership import Lease
from tunnelmgr.core.world import Record, World
from tunnelmgr.daemon.unreachable import KNOWN_SECONDS, NEW_SECONDS, Unreachable
from tunnelmgr.errors import Pace

AGENT = Agent(AgentId("cloud:a"), "1", "cloud", "ci", "a", ("10.0.0.1",))
KNOWN = Record(AGENT, 0.0, 0.0, possessed=("ssh-ed25519 AAAA",))
ENDED = TunnelEnded(AGENT.id, 1, Failure("unreachable", Pace.SOON, "no answer"))


def world(record: Record = KNOWN, holder: str = "me") -> World:
    """Return a world with one agent and its lease."""
    return World(records={AGENT.id: record}, cluster=Cluster("me", agents={AGENT.id: Lease(holder, 1)}))


def test_an_agent_that_was_reached_before_is_offered_after_seconds_and_then_ever_later() -> None:
    """The wait begins with the first dial that fails, and doubles with each offer."""
    followed = Unreachable()
    followed.note(ENDED, 100.0)
    followed.note(ENDED, 100.0 + KNOWN_SECONDS / 2)

    assert followed.due(world(), 100.0 + KNOWN_SECONDS - 0.1) == {}
    assert followed.due(world(), 100.0 + KNOWN_SECONDS) == {AGENT.id: 0}
    followed.offered({AGENT.id, AgentId("cloud:never-noted")}, 200.0)
    assert followed.due(world(), 200.0 + 2 * KNOWN_SECONDS - 0.1) == {}
    assert followed.due(world(), 200.0 + 2 * KNOWN_SECONDS) == {AGENT.id: 1}


def test_an_agent_that_was_never_reached_has_time_to_boot() -> None:
    """It is offered after a minute, in case that this member's network is at fault."""
    followed = Unreachable()
    followed.note(ENDED, 0.0)
    new = world(replace(KNOWN, possessed=()))

    assert followed.due(new, NEW_SECONDS - 0.1) == {}
    assert followed.due(new, NEW_SECONDS) == {AGENT.id: 0}


@pytest.mark.parametrize(
    "reason",
    [
        TunnelDialled(AGENT.id, 2, "10.0.0.1"),
        world(holder="other"),
        world(replace(KNOWN, present=False)),
        World(),
    ],
    ids=["reached", "held elsewhere", "left", "forgotten"],
)
def test_an_agent_that_is_no_longer_in_question_begins_anew(reason: TunnelDialled | World) -> None:
    """Once it was reached, has moved or has left, only another failed dial begins a wait, as short as the first."""
    followed = Unreachable()
    followed.note(ENDED, 0.0)
    followed.offered({AGENT.id}, 0.0)
    if isinstance(reason, World):
        assert followed.due(reason, 1000.0) == {}
    else:
        followed.note(reason, 1.0)

    assert followed.due(world(), 1000.0) == {}
    followed.note(ENDED, 1000.0)
    assert followed.due(world(), 1000.0 + KNOWN_SECONDS) == {AGENT.id: 0}


@pytest.mark.parametrize("failure", [None, Failure("authentication", Pace.SLOW, "refused")])
def test_only_an_agent_that_does_not_answer_counts(failure: Failure | None) -> None:
    """Another member would be refused as well."""
    followed = Unreachable()
    followed.note(TunnelEnded(AGENT.id, 1, failure), 0.0)

    assert followed.due(world(), 1000.0) == {}
