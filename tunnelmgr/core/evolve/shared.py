"""What other members of a cluster have written about agents that this one does not hold, and their seeds."""

from dataclasses import replace

from tunnelmgr.core.events import StateShared
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.trust import REMEMBERED, HostTrust
from tunnelmgr.core.world import Record, World


def taken_in(world: World, event: StateShared) -> Transition:
    """Adopt the records of agents that this member does not hold, and all seeds that it does not know better."""
    others = [record for record in event.records if not world.holds(record.agent.id)]
    records = dict(world.records)
    touched = set()
    for record in others:
        known = records.get(record.agent.id)
        adopted = as_restored(record) if known is None else _adopted(known, record)
        if adopted != known:
            records[record.agent.id] = adopted
            touched.add(record.agent.id)
    seeds = {seed.id: seed for seed in event.seeds if world.seeds.get(seed.id) != seed}
    if seeds:
        world = replace(world, seeds={**world.seeds, **seeds})
    return Transition(replace(world, records=records) if touched else world, touched)


def _adopted(known: Record, record: Record) -> Record:
    """Return what is known here of an agent, with what its holder has written: evidence, quarantine and history.

    Whether it is present, where and in which incarnation is what its source says, which every member receives.
    """
    if record.agent.incarnation != known.agent.incarnation:
        return known
    trust = known.trust if known.trust == record.proved else as_restored(record).trust
    return replace(
        known,
        first_seen=record.first_seen,
        changed=record.changed,
        trust=trust,
        proved=record.proved,
        possessed=record.possessed,
        quarantine=record.quarantine,
        history=record.history,
    )


def as_restored(record: Record) -> Record:
    """Return a stored record as it is in force: evidence that can be obtained again is requested again."""
    return replace(record, trust=record.proved if _remembered(record.proved) else None)


def _remembered(trust: HostTrust | None) -> bool:
    return trust is not None and trust.method in REMEMBERED
