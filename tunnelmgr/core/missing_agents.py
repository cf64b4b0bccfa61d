"""Agents that a source's complete listing lacks: which to request by id, and how long to keep the others.

A cloud may answer successfully and wrongly: with an empty listing, or with one that lacks most of the fleet. So missing
agents are requested by id, if the source can do that. An agent that has ended leaves; one that exists unchanged stays;
one that exists with other labels no longer belongs to the source. An agent about which nothing is known stays until it
has been missing for a time that grows with the share of the source's agents that are missing.
"""

from dataclasses import replace

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.world import Record, World

LONGEST_GRACE = 45.0
"""Seconds for which agents stay if all of a source's agents are missing; with one or two polls, a minute."""
FAILURE_SHARE = 0.5
"""The share of a source's agents beyond which their absence counts as a failure of the source."""


def grace_period(missing: int, present: int) -> float:
    """Return for how many seconds agents must be missing before they leave, if `missing` of `present` agents are.

    45 s for all, 6 s for half, less than a second for a quarter: a fleet seldom shrinks by much without a report, and a
    small part of it may leave soon.
    """
    return float(LONGEST_GRACE * (missing / present) ** 3)


def missing_agents(world: World, source: str, snapshot: Snapshot) -> tuple[Agent, ...]:
    """Return the present agents of a source that a complete listing lacks and does not explain."""
    if snapshot.failures or snapshot.absence_is_proof:
        return ()
    listed = {agent.id for agent in snapshot.agents} | snapshot.gone | snapshot.outside
    return tuple(record.agent for record in present_records(world, source) if record.agent.id not in listed)


def present_records(world: World, source: str) -> list[Record]:
    """Return the records of a source's present agents."""
    return [record for record in world.records.values() if record.present and record.agent.source == source]


def with_answer(listing: Snapshot, answer: Snapshot) -> Snapshot:
    """Return a listing together with the answer to the request for the agents that it lacks."""
    return replace(
        listing,
        agents=listing.agents | answer.agents,
        gone=listing.gone | answer.gone,
        outside=listing.outside | answer.outside,
        unlisted=frozenset(agent.id for agent in answer.agents),
        failures=(*listing.failures, *answer.failures),
    )
