"""The difference between a new world and the one written last, which the store has to write."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.evolve.settle import settle
from tunnelmgr.core.evolve.shared import as_restored
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.world import LIFE, HistoryEntry, Record, World


@dataclass(frozen=True, slots=True)
class Changes:
    """Records and seeds to write, agents and seeds to forget, and another secret if there is one to write.

    In a cluster, `terms` has the term of this member's lease for each of these agents; a write under an earlier term is
    dropped. It is None for a controller that shares its state with no other.
    """

    records: tuple[Record, ...] = ()
    forgotten: tuple[AgentId, ...] = ()
    seeds: tuple[Seed, ...] = ()
    spent: tuple[str, ...] = ()
    terms: Mapping[AgentId, int] | None = None
    secret: bytes = field(default=b"", repr=False)

    def __bool__(self) -> bool:
        return bool(self.records or self.forgotten or self.seeds or self.spent or self.secret)


@dataclass(frozen=True, slots=True)
class StoredState:
    """What the store holds, as read at the start.

    `secret` is that of the proofs which agents bring back; an opened store always has one, an archive may lack it.
    """

    records: Mapping[AgentId, Record] = field(default_factory=dict)
    seeds: Mapping[str, Seed] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)


History = tuple[HistoryEntry, ...]

REPEATS = 60.0
"""Seconds between two writes of an agent that repeatedly fails in the same way."""


def changes(written: World, world: World) -> Changes:
    """Return the difference that this controller may write; records that are the same object are not compared."""
    records = tuple(
        record
        for id_, record in world.records.items()
        if _is_due(written.records.get(id_), record) and world.holds(id_)
    )
    forgotten = tuple(id_ for id_ in written.records if id_ not in world.records and world.holds(id_))
    return Changes(
        records,
        forgotten,
        tuple(seed for id_, seed in world.seeds.items() if written.seeds.get(id_) != seed),
        tuple(id_ for id_ in written.seeds if id_ not in world.seeds),
        _terms(world, (*(record.agent.id for record in records), *forgotten)),
    )


def _terms(world: World, agents: Iterable[AgentId]) -> Mapping[AgentId, int] | None:
    cluster = world.cluster
    return None if cluster is None else {id_: cluster.agents[id_].term for id_ in agents}


def is_pinned(written: World, record: Record) -> bool:
    """Return whether `written` has the agent's proof, so that a start would continue with the same evidence."""
    known = written.records.get(record.agent.id)
    if known is None or known.agent.incarnation != record.agent.incarnation:
        return False
    return known.proved is record.proved or known.proved == record.proved


def new_entries(before: World, after: World) -> tuple[tuple[Record, HistoryEntry], ...]:
    """Return what was added to the agents' histories, each entry with its record."""
    return tuple(
        (record, entry)
        for id_, record in after.records.items()
        if before.records.get(id_) is not record
        for entry in _added(before.records.get(id_), record)
    )


def _is_due(written: Record | None, record: Record) -> bool:
    """Return whether a record must be written; one in which only the counts of failures changed can wait."""
    if written is record:
        return False
    return written is None or record.changed - written.changed >= REPEATS or not _only_counts(written, record)


def _only_counts(before: Record, record: Record) -> bool:
    """Return whether two records differ only in how often and when their last steps happened."""
    return (
        bool(before.history and record.history)
        and record.history[-1].count > 1
        and _same_steps(before.history, record.history)
        and before.present is record.present
        and before.possessed == record.possessed
        and (before.agent is record.agent or before.agent == record.agent)
        and (before.proved is record.proved or before.proved == record.proved)
        and (before.quarantine is record.quarantine or before.quarantine == record.quarantine)
    )


def _same_steps(before: History, history: History) -> bool:
    """Return whether two histories differ only in the counts and the order of the last life's steps."""
    if before[:-1] == history[:-1] and _step(before[-1]) == _step(history[-1]):
        return True  # the usual case, which is checked often: one step that repeats
    return before[:-LIFE] == history[:-LIFE] and sorted(map(_step, before[-LIFE:])) == sorted(
        map(_step, history[-LIFE:])
    )


def _step(entry: HistoryEntry) -> tuple[str, str]:
    return entry.step, entry.detail


def _added(before: Record | None, record: Record) -> History:
    """Return the entries after the last one that was there before; a repeated entry moves to the end."""
    known = set(map(id, before.history)) if before else set()
    kept = [at for at, entry in enumerate(record.history) if id(entry) in known]
    return record.history[kept[-1] + 1 :] if kept else record.history


def restored(stored: StoredState, now: float) -> World:
    """Return the world to start from, before any source has answered.

    Agents that were present stay present until their source says otherwise, so that a cloud that does not answer at the
    start costs no tunnel; host keys are verified as before.
    """
    kept = {id_: as_restored(record) for id_, record in stored.records.items()}
    return settle(World(), World(records=kept, seeds=stored.seeds), kept, now)
