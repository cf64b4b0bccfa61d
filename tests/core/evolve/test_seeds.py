"""Seeds: host keys that were generated before a machine's launch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tunnelmgr.core.events import (
    AgentEnded,
    EvidenceFound,
    ReleaseRequested,
    RetentionExpired,
    SeedAdded,
)
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import Method

if TYPE_CHECKING:
    from tests.core.conftest import History


def seeded(history: History, expires: float = 200.0) -> Seed:
    """Accept evidence by seeds, and add a seed."""
    history.accept(Method.SEEDED)
    seed = Seed("one", history.key(), expires)
    history.receive(SeedAdded(seed))
    return seed


def test_a_seed_is_for_one_incarnation(history: History) -> None:
    """A seed does not prove a later incarnation of its holder."""
    agent = history.agent()
    seeded(history)
    history.prove(agent, Method.SEEDED)
    rebuilt = replace(agent, incarnation="2")

    history.prove(rebuilt, Method.SEEDED)

    assert history.record(agent).trust is None
    assert history.world.seeds["one"].incarnation == "1"
    assert "its seed was used already" in history.status(agent).message


def test_a_seed_stays_taken_through_a_restart(history: History) -> None:
    """After a restart, a used seed proves its holder and no other agent."""
    agent, thief = history.agent("a"), history.agent("b")
    seeded(history)
    history.prove(agent, Method.SEEDED)

    history.restart()
    history.prove(thief, Method.SEEDED)

    assert history.record(agent).trust == history.trust(1, Method.SEEDED)
    assert history.record(thief).trust is None
    assert history.record(agent).quarantine is None


def test_a_seed_that_expired_unused_is_forgotten(history: History) -> None:
    """A seed that was not used before it expired is forgotten, and then proves no agent."""
    seeded(history, expires=150.0)
    history.receive(RetentionExpired(0.0))
    before = dict(history.world.seeds)
    history.now = 150.0

    history.receive(RetentionExpired(0.0))
    history.prove(history.agent(), Method.SEEDED)

    assert list(before) == ["one"]
    assert history.world.seeds == {}
    assert "its seed was used already, or has expired" in history.status(history.agent()).message


def test_a_seed_is_remembered_as_long_as_its_holder(history: History) -> None:
    """A used seed is remembered for as long as its holder, beyond its expiry."""
    agent = history.agent()
    seeded(history, expires=150.0)
    history.prove(agent, Method.SEEDED)
    history.now = 500.0
    history.receive(RetentionExpired(400.0))
    kept = dict(history.world.seeds)
    history.listed(gone=frozenset({agent.id}))
    history.receive(RetentionExpired(600.0))
    history.act()

    assert list(kept) == ["one"]
    assert history.world.seeds == {}


def test_a_release_lets_the_holder_use_its_seed_again(history: History) -> None:
    """After a release, a seed proves its holder again, because it is the same machine."""
    agent = history.agent()
    seeded(history)
    history.prove(agent, Method.SEEDED)
    history.act()
    history.receive(AgentEnded("file", agent.id, "of no concern"))
    twin = history.agent("twin", source="file")
    history.listed(twin, source="file")
    history.receive(EvidenceFound(twin.id, "1", history.trust(1, Method.PINNED)))

    history.listed(gone=frozenset({twin.id}), source="file")
    history.receive(ReleaseRequested(agent.id, "the twin is gone"))
    history.prove(agent, Method.SEEDED)

    assert history.record(agent).trust == history.trust(1, Method.SEEDED)
