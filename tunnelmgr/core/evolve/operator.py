"""Operators' requests, the end of the process, and forgetting what has expired."""

from dataclasses import replace

from tunnelmgr.core.events import DrainRequested, ReleaseRequested, RetryRequested, StopRequested
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.tunnel import Resting
from tunnelmgr.core.world import Stage, World


def retry(world: World, event: RetryRequested, now: float) -> World:
    """Make the next try due now."""
    status = world.tunnels.get(event.agent)
    if not isinstance(status, Resting):
        return world
    world = world.with_record(world.records[event.agent].with_step(now, "retry", "requested by an operator", event.uid))
    return world.with_tunnel(event.agent, replace(status, failures=0, retry_at=None))


def release(world: World, event: ReleaseRequested, now: float) -> Transition:
    """End a quarantine, or the wait for evidence as strong as before."""
    record = world.records.get(event.agent)
    if record is None or not record.held_back:
        return Transition(world)
    # The old evidence led into the quarantine; evidence is sought again.
    free = replace(record, quarantine=None, trust=None, proved=None, possessed=())
    return Transition(world.with_record(free.with_step(now, "released", event.reason, event.uid)), {event.agent})


def stop(world: World, event: StopRequested | DrainRequested) -> World:
    """Take the next step to the end of the process."""
    step = Stage.STOPPING if isinstance(event, StopRequested) else Stage.DRAINING
    return replace(world, stage=max(world.stage, step))


def forget(world: World, before: float, wall: float) -> World:
    """Forget the agents that left before `before`, and the seeds that expired unused by the wall clock."""
    under_way = {id_ for id_, status in world.tunnels.items() if not isinstance(status, Resting)}
    old = {
        id_
        for id_, record in world.records.items()
        if not record.present and record.changed < before and id_ not in under_way
    }
    return replace(
        world,
        records={id_: record for id_, record in world.records.items() if id_ not in old},
        tunnels={id_: status for id_, status in world.tunnels.items() if id_ not in old},
        seeds={
            id_: seed
            for id_, seed in world.seeds.items()
            if (wall < seed.expires if seed.holder is None else seed.holder not in old)
        },
    )
