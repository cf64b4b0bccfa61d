"""Which agent is served first if not all can be served at once; derived from the agents' histories.

Agents that were up come first, then new ones, then failing ones by the number of their failures in a row. The history
is in the store, so the order also holds right after a restart, when no other trace of earlier tries is left.
"""

from typing import Final, NamedTuple

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.tunnel import TunnelStatus
from tunnelmgr.core.world import Record, World

PROVEN: Final = 0
"""The rank of an agent whose tunnel was up when it was last tried."""
NEW: Final = 1
"""The rank of an agent that was not tried yet; each failure in a row adds one."""
FORGIVEN: Final = 2
"""Failures in a row that an agent that was up may have before it ranks behind new ones.

The first is the loss itself. The next is often a port that the agent's sshd has not freed yet.
"""
_MEANING: Final = {
    "failed": "failure",
    "probed": "up",
    "lost": "up",
    "seen": "start",
    "moved": "start",
    "rebuilt": "start",
    "retry": "start",
    "released": "start",
}
"""What a step says about the tries before it. After a start they mean nothing: it is another machine, another address,
or an operator's request. All other steps say nothing."""


class Precedence(NamedTuple):
    """A place in the order; compared as tuples, the smallest goes first.

    A lower rank goes first. Within a rank the agent that was first seen last does, because a build is waiting for it:
    `minus_seen` is minus that time, in seconds since the epoch.
    """

    rank: int
    minus_seen: float

    @property
    def failing(self) -> bool:
        """Return whether the agent ranks behind those that were up and those that are new."""
        return self.rank > NEW


def precedence(record: Record, status: TunnelStatus | None) -> Precedence:
    """Return the place in the order of the agent with this record and status.

    The history says how often it has failed since its tunnel was last up, or since the history's last start.
    """
    failed, was_up = 0, False
    for entry in reversed(record.history):
        meaning = _MEANING.get(entry.step)
        if meaning == "failure":
            failed += entry.count
        elif meaning is not None:
            was_up = meaning == "up"
            break
    failures = failed if status is None or status.failures < failed else status.failures
    rank = max(PROVEN, failures - FORGIVEN + NEW) if was_up else NEW + failures
    return Precedence(rank, -record.first_seen)


def precedence_of(world: World, agent: AgentId) -> Precedence:
    """Return the place in the order of an agent; one that is not known goes last."""
    record = world.records.get(agent)
    return precedence(record, world.tunnels.get(agent)) if record else LAST


FIRST: Final = Precedence(PROVEN, 0.0)
LAST: Final = Precedence(1_000_000, 0.0)
