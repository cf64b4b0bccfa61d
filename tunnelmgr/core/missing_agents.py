"""Agents that a source's whole listing lacks: which ones to ask for by id, and how long to wait for the others.

A cloud may answer successfully and wrongly: with an empty listing, or with one that lacks most of the fleet. So those
that are missing are asked for by id, where the source can do that. An agent that has ended is gone; one that is there
as it was stays; one that is there with other labels was taken out of the source. What nothing is known about stays
until it has been missing for a time that grows with the share of the source's agents that are.
"""

from dataclasses import replace

from tunnelmgr.core.agent import Agent
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.world import Record, World

LONGEST_GRACE = 45.0
"""Seconds for which agents stay where all of a source's are missing; with a poll or two, a minute."""
FAILURE_SHARE = 0.5
"""The share of a source's agents beyond which their absence is shown as the source's failure."""


def grace_period(missing: int, present: int) -> float:
    """Return for how many seconds agents have to be missing to be taken for gone, where so many of `present` are.

    45 s for all, 6 s for a half, less than a second for a quarter. A fleet seldom shrinks by so much without a word,
    and a small part of it is gone soon.
    """
    return float(LONGEST_GRACE * (missing / present) ** 3)


def missing_agents(world: World, source: str, snapshot: Snapshot) -> tuple[Agent, ...]:
    """Return the present agents of a source that a whole listing lacks and does not explain."""
    if snapshot.failures or snapshot.absence_is_proof:
        return ()
    listed = {agent.id for agent in snapshot.agents} | snapshot.gone | snapshot.outside
    return tuple(record.agent for record in present_records(world, source) if record.agent.id not in listed)


def present_records(world: World, source: str) -> list[Record]:
    """Return the records of a source's present agents."""
    return [record for record in world.records.values() if record.present and record.agent.source == source]


def with_answer(listing: Snapshot, answer: Snapshot) -> Snapshot:
    """Return a listing with what was learnt by asking for the agents that it lacks."""
    return replace(
        listing,
        agents=listing.agents | answer.agents,
        gone=listing.gone | answer.gone,
        outside=listing.outside | answer.outside,
        unlisted=frozenset(agent.id for agent in answer.agents),
        failures=(*listing.failures, *answer.failures),
    )
