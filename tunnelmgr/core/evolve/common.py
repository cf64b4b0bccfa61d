"""What several transitions share: bringing statuses and specs in line with the records."""

from collections.abc import Iterable
from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Failure, Rules
from tunnelmgr.core.tunnel import Resting, Seeking
from tunnelmgr.core.world import Quarantine, Record, World, resting_phase, resting_status, spec_for


def rested(world: World, agents: Iterable[AgentId], now: float) -> World:
    """Bring the status of agents on which nothing is under way in line with their records."""
    tunnels = dict(world.tunnels)
    for id_ in agents:
        record, status = world.records[id_], tunnels.get(id_)
        if status is not None and not isinstance(status, Resting):
            continue
        phase = resting_phase(record)
        if not record.present:
            tunnels.pop(id_, None)
        elif status is None or status.phase is not phase:
            fresh = resting_status(record, now, status.life if status else 0)
            # Evidence that is asked for anew for each life must not make the dials behind it forget their failures.
            tunnels[id_] = replace(fresh, failures=status.failures if status else 0)
    return replace(world, tunnels=tunnels)


def at_rest(status: Resting | Seeking) -> Resting:
    """Return the status in which a search ends."""
    return status.resting if isinstance(status, Seeking) else status


def respecified(record: Record, rules: Rules) -> Record:
    """Return the record with the tunnel that it should have by its evidence."""
    spec = spec_for(record, rules)
    return record if spec == record.spec else replace(record, spec=spec)


def quarantined(world: World, agent: AgentId, failure: Failure, now: float) -> World:
    """Refuse an agent until a person releases it; one that is refused already keeps its first reason.

    It claims no more keys than those that it has shown.
    """
    record = world.records[agent]
    if record.quarantine is not None:
        return world
    mark = Quarantine(since=now, code=failure.code, message=failure.message)
    world = world.with_record(replace(record, quarantine=mark).told(now, "quarantined", failure.message))
    holders = {key: id_ for key, id_ in world.key_holders.items() if id_ != agent or key in record.possessed}
    return rested(replace(world, key_holders=holders), {agent}, now)
