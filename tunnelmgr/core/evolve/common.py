"""What several transitions share: bringing statuses, specs and keys in line with the records."""

from collections.abc import Iterable
from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Failure, Rules
from tunnelmgr.core.trust import fingerprint
from tunnelmgr.core.world import Quarantine, Record, World, resting_phase, resting_status, spec_for
from tunnelmgr.errors import HostKeySharedError, Pace


def rested(world: World, agents: Iterable[AgentId], now: float) -> World:
    """Bring the status of agents on which nothing is under way in line with their records."""
    tunnels = dict(world.tunnels)
    for id_ in agents:
        record, status = world.records[id_], tunnels.get(id_)
        if status is not None and status.working:
            continue
        phase = resting_phase(record)
        if not record.present:
            tunnels.pop(id_, None)
        elif status is None or status.phase is not phase:
            fresh = resting_status(record, now, status.life if status else 0)
            # Evidence that is asked for anew for each life must not make the dials behind it forget their failures.
            tunnels[id_] = replace(fresh, failures=status.failures if status else 0)
    return replace(world, tunnels=tunnels)


def respecified(record: Record, rules: Rules) -> Record:
    """Return the record with the tunnel that it should have by its evidence."""
    spec = spec_for(record, rules)
    return record if spec == record.spec else replace(record, spec=spec)


def quarantined(world: World, agent: AgentId, failure: Failure, now: float) -> World:
    """Refuse an agent until a person releases it; one that is refused already keeps its first reason."""
    record = world.records[agent]
    if record.quarantine is not None:
        return world
    mark = Quarantine(since=now, code=failure.code, message=failure.message)
    world = world.with_record(replace(record, quarantine=mark).told(now, "quarantined", failure.message))
    return rested(world, {agent}, now)


def keys_assigned(world: World, now: float) -> World:
    """Work out afresh whose each key is; an agent may come back with a key that another has had meanwhile."""
    holders: dict[str, AgentId] = {}
    claims = [
        (id_, key)
        for id_, record in world.records.items()
        if record.present and record.trust
        for key in record.trust.keys
    ]
    for id_, key in claims:
        holder = holders.setdefault(key, id_)
        if holder != id_:
            world = shared(world, (holder, id_), key, now)
    return replace(world, key_holders=holders)


def shared(world: World, twins: tuple[AgentId, AgentId], key: str, now: float) -> World:
    """Quarantine two agents that claim one key: neither can be told from the other."""
    for one, other in (twins, twins[::-1]):
        claim = f"{one} and {other} claim one host key ({fingerprint(key)})"
        message = f"{claim}; remove the wrong one, then `tunnelmgr release`"
        world = quarantined(world, one, Failure(HostKeySharedError.code, Pace.NEVER, message), now)
    return world
