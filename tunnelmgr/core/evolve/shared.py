"""What other members of a cluster have written about agents that this one does not hold, and their seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import AgentQuarantined, ClusterChanged, StateShared
from tunnelmgr.core.evolve.quarantine import quarantined
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import REMEMBERED, HostTrust, Method
from tunnelmgr.core.tunnel import Resting
from tunnelmgr.core.world import Record, World
from tunnelmgr.errors import Pace


def from_members(world: World, event: ClusterChanged | StateShared | AgentQuarantined, now: float) -> Transition:
    """Follow what the database says of the members and the leases, or adopt what other members have written."""
    match event:
        case ClusterChanged(cluster, moved):
            return Transition(_with_fresh_tries(replace(world, cluster=cluster), moved))
        case StateShared():
            return _adopt(world, event)
        case AgentQuarantined(agent, incarnation, code, message):
            record = world.records.get(agent)
            if record is None or not record.present or record.agent.incarnation != incarnation:
                return Transition(world)
            return Transition(quarantined(world, agent, Failure(code, Pace.NEVER, message), now), {agent})
    assert_never(event)


def _with_fresh_tries(world: World, moved: Iterable[AgentId]) -> World:
    """Let the agents that this member is to serve from now on be tried at once, however often it failed before."""
    serves = world.cluster.serves if world.cluster is not None else world.holds
    fresh = {
        id_: replace(status, failures=0, retry_at=None)
        for id_ in moved
        if serves(id_) and isinstance(status := world.tunnels.get(id_), Resting) and status.failures
    }
    return replace(world, tunnels={**world.tunnels, **fresh}) if fresh else world


def _adopt(world: World, event: StateShared) -> Transition:
    """Adopt the records of agents that this member does not hold, and the seeds that differ from its own."""
    records = dict(world.records)
    touched = set()
    for record in event.records:
        if world.holds(record.agent.id):
            continue
        known = records.get(record.agent.id)
        adopted = as_restored(record) if known is None else _adopted(known, record)
        if adopted != known:
            records[record.agent.id] = adopted
            touched.add(record.agent.id)
    seeds = new_seeds(world, event.seeds)
    for seed in seeds:
        loser = _without_seed(world, records, seed)
        if loser is not None:
            records[loser.agent.id] = loser
            touched.add(loser.agent.id)
    if seeds:
        world = replace(world, seeds={**world.seeds, **{seed.id: seed for seed in seeds}})
    return Transition(replace(world, records=records) if touched else world, touched)


def new_seeds(world: World, seeds: Iterable[Seed]) -> tuple[Seed, ...]:
    """Return those of the stored seeds that this member does not know, or does not know the holder of.

    A seed that this member has just assigned may be stored without a holder; the first to be stored wins.
    """
    return tuple(
        seed
        for seed in seeds
        if (known := world.seeds.get(seed.id)) is None or (seed.holder is not None and seed.holder != known.holder)
    )


def _without_seed(world: World, records: Mapping[AgentId, Record], seed: Seed) -> Record | None:
    """Return the record, without its evidence, of the agent that held a seed which another member gave away first."""
    known = world.seeds.get(seed.id)
    record = records.get(known.holder) if known is not None and known.holder is not None else None
    if record is None or record.proved is None or record.proved.method is not Method.SEEDED:
        return None
    return replace(record, trust=None, proved=None, possessed=())


def _adopted(known: Record, record: Record) -> Record:
    """Return what is known here of an agent, with what its holder has written: evidence, quarantine and history.

    Its presence, address and incarnation are those that its source reports, which every member receives.
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
