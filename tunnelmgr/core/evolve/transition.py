"""What a transition returns; `settle` derives everything that follows from it."""

from collections.abc import Collection
from typing import NamedTuple

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.world import World


class Transition(NamedTuple):
    """The world as an event changes it, and the agents whose records or statuses it has touched."""

    world: World
    touched: Collection[AgentId] = ()
