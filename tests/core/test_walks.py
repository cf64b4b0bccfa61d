"""Random walks over all events, with a performer that does what the plan says.

After every step the invariants of core/evolve hold; from every state the world converges, drains and forgets.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.walks.ends import check_converged, drain, forget_all, settle
from tests.core.walks.invariants import check
from tests.core.walks.walk import Walk

# The same walks each time; a shorter length shows the first step that goes wrong.
walks = given(seed=st.integers(0, 2**32), steps=st.integers(20, 250))
thorough = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@walks
@thorough
def test_from_anywhere_the_world_converges(seed: int, steps: int) -> None:
    """If everything succeeds from now on, exactly the desired tunnels come up."""
    walk = Walk(seed)
    walk.go(steps)

    settle(walk.performer)

    check_converged(walk.performer)


@walks
@thorough
def test_from_anywhere_the_world_drains_to_nothing(seed: int, steps: int) -> None:
    """A drain asks every worker once, starts nothing, and is complete when the workers have ended."""
    walk = Walk(seed)
    walk.go(steps)

    drain(walk.performer)

    check(walk.performer)


@walks
@thorough
def test_from_anywhere_the_world_forgets_what_is_gone(seed: int, steps: int) -> None:
    """Nothing is left of agents that are gone once their workers have ended and their retention has expired."""
    walk = Walk(seed)
    walk.go(steps)

    forget_all(walk.performer)

    world = walk.performer.world
    assert (world.records, world.tunnels, world.key_holders) == ({}, {}, {})
