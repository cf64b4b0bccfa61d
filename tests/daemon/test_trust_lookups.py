"""The lookups of the trust methods, answered from the world."""

from dataclasses import dataclass

import pytest

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.world import World
from tunnelmgr.daemon.trust_lookups import StoredSeeds

UNCLAIMED = Seed("one", "ssh-ed25519 AAAA", expires=100.0)
CLAIMED = Seed("two", "ssh-ed25519 BBBB", expires=100.0, holder=AgentId("cloud:a"), incarnation="1")


@dataclass
class FixedWorld:
    """A view of a world that does not change."""

    world: World


@pytest.mark.parametrize(
    ("id_", "now", "found"),
    [
        ("one", 100.0, UNCLAIMED),
        ("one", 100.1, None),
        ("two", 100.1, CLAIMED),
        ("three", 0.0, None),
    ],
)
def test_a_seed_is_found_until_it_expires_unclaimed(id_: str, now: float, found: Seed | None) -> None:
    """An unclaimed seed is found until it expires, a claimed one beyond that, and an unknown one never."""
    seeds = StoredSeeds(FixedWorld(World(seeds={"one": UNCLAIMED, "two": CLAIMED})), lambda: now)

    assert seeds.seed(id_) == found
