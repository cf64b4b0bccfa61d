"""What of a new world must be written down, against the one that was written last."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.evolve.claims import keys_assigned
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import REMEMBERED, HostTrust
from tunnelmgr.core.world import Moment, Record, World, resting_status


@dataclass(frozen=True, slots=True)
class Changes:
    """Records and seeds to write, and agents and seeds to forget."""

    records: tuple[Record, ...] = ()
    forgotten: tuple[AgentId, ...] = ()
    seeds: tuple[Seed, ...] = ()
    spent: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.records or self.forgotten or self.seeds or self.spent)


@dataclass(frozen=True, slots=True)
class Memory:
    """What was written down, as it is read at a start."""

    records: Mapping[AgentId, Record] = field(default_factory=dict)
    seeds: Mapping[str, Seed] = field(default_factory=dict)


def changes(written: World, world: World) -> Changes:
    """Return the difference; records that are the same object are not looked at."""
    return Changes(
        tuple(record for id_, record in world.records.items() if written.records.get(id_) is not record),
        tuple(id_ for id_ in written.records if id_ not in world.records),
        tuple(seed for id_, seed in world.seeds.items() if written.seeds.get(id_) is not seed),
        tuple(id_ for id_ in written.seeds if id_ not in world.seeds),
    )


def is_pinned(written: World, record: Record) -> bool:
    """Tell whether `written` has what proves an agent, so that a start would go on from the same evidence."""
    known = written.records.get(record.agent.id)
    return known is not None and known.proved == record.proved and known.agent.incarnation == record.agent.incarnation


def moments(before: World, after: World) -> tuple[tuple[Record, Moment], ...]:
    """Return what has been added to the agents' stories, each moment with the record that it stands in."""
    return tuple(
        (record, moment)
        for id_, record in after.records.items()
        if before.records.get(id_) is not record
        for moment in _added(before.records.get(id_), record)
    )


def _added(before: Record | None, record: Record) -> tuple[Moment, ...]:
    if before is None or not before.story:
        return record.story
    last = before.story[-1]
    told = [at for at, moment in enumerate(record.story) if moment is last]
    return record.story[told[-1] + 1 :] if told else record.story


def restored(memory: Memory, now: float) -> World:
    """Return the world to start from, before any source has answered.

    Agents that were there are there still until their source says otherwise, so that a cloud that does not answer at a
    start costs no tunnel; their keys decide as ever. Evidence that can be had again is asked for again.
    """
    kept = {
        id_: replace(record, trust=record.proved if _remembered(record.proved) else None, spec=None)
        for id_, record in memory.records.items()
    }
    tunnels = {id_: resting_status(record, now) for id_, record in kept.items() if record.present}
    return keys_assigned(World(records=kept, tunnels=tunnels, seeds=memory.seeds), now)


def _remembered(trust: HostTrust | None) -> bool:
    return trust is not None and trust.method in REMEMBERED
