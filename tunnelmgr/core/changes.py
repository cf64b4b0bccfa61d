"""What of a new world must be written down, against the one that was written last."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.trust import REMEMBERED
from tunnelmgr.core.world import Record, World, resting_status


@dataclass(frozen=True, slots=True)
class Changes:
    """Records to write, and agents to forget."""

    records: tuple[Record, ...] = ()
    forgotten: tuple[AgentId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.records or self.forgotten)


def changes(written: World, world: World) -> Changes:
    """Return the difference; records that are the same object are not looked at."""
    return Changes(
        tuple(record for id_, record in world.records.items() if written.records.get(id_) is not record),
        tuple(id_ for id_ in written.records if id_ not in world.records),
    )


def restored(records: Mapping[AgentId, Record], now: float) -> World:
    """Return the world to start from, before any source has answered.

    Agents that were there are there still until their source says otherwise, so that a cloud that does not answer at a
    start costs no tunnel; their keys decide as ever.
    """
    kept = {id_: replace(record, spec=None) for id_, record in records.items()}
    tunnels = {id_: resting_status(record, now) for id_, record in kept.items() if record.present}
    holders = {key: id_ for id_, record in kept.items() if record.present and record.trust for key in record.trust.keys}
    return World(records=kept, tunnels=tunnels, key_holders=holders)


def pin_of(record: Record) -> tuple[str, tuple[str, ...]] | None:
    """Return the method and keys to remember of a record, if its evidence can be had once only."""
    if record.trust is None or record.trust.method not in REMEMBERED:
        return None
    return record.trust.method.value, record.trust.keys
