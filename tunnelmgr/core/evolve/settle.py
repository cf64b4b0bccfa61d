"""What follows from any transition: which agent holds each host key, and the statuses of resting agents.

Transitions change records and say which; they need not remember what else depends on them.
"""

from collections.abc import Collection
from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.evolve.key_holders import assigned, claimed
from tunnelmgr.core.tunnel import Resting, TunnelStatus
from tunnelmgr.core.world import Record, World, resting_phase, resting_status


def settle(before: World, world: World, touched: Collection[AgentId], now: float) -> World:
    """Return `world` with everything that is derived from the records of the `touched` agents updated.

    `before` is the world before the transition, whose key holders agree with its records.
    """
    if not touched:
        return world
    if world.records is not before.records:
        settled = _with_key_holders(before, world, touched, now)
        if settled.records is not world.records:  # a decision between claimants may concern any agent
            changed = {id_ for id_, record in settled.records.items() if record is not world.records[id_]}
            touched = changed.union(touched)
        world = settled
    return _with_statuses(world, touched, now)


def _with_key_holders(before: World, world: World, touched: Collection[AgentId], now: float) -> World:
    """Enter what the touched agents claim, and remove what they no longer claim; reassign all keys only if needed."""
    given_up: set[tuple[str, AgentId]] = set()
    entered: dict[str, AgentId] = {}
    for id_ in touched:
        was, record = before.records.get(id_), world.records[id_]
        if (was is not None and _is_in_dispute(was)) or _is_in_dispute(record):
            return assigned(world, now)
        old, new = claimed(was) if was else (), claimed(record)
        if old is new or old == new:
            continue
        given_up.update((key, id_) for key in old if key not in new)
        for key in new:
            if key in old:
                continue
            if entered.setdefault(key, id_) != id_:
                return assigned(world, now)
    return _entered(world, given_up, entered, now)


def _entered(world: World, given_up: set[tuple[str, AgentId]], entered: dict[str, AgentId], now: float) -> World:
    if not given_up and not entered:
        return world
    holders = world.key_holders
    if given_up:
        if _is_claimed_in_quarantine(world, {key for key, _ in given_up}):
            return assigned(world, now)
        holders = {key: id_ for key, id_ in holders.items() if (key, id_) not in given_up}
    if any(holders.get(key, id_) != id_ for key, id_ in entered.items()):
        return assigned(world, now)
    return replace(world, key_holders={**holders, **entered})


def _is_in_dispute(record: Record) -> bool:
    return record.quarantine is not None and bool(record.quarantine.disputed)


def _is_claimed_in_quarantine(world: World, keys: set[str]) -> bool:
    """Return whether an agent in quarantine claims one of `keys`; it may hold the key once another gives it up."""
    return any(
        not keys.isdisjoint(claimed(record)) for record in world.records.values() if record.quarantine is not None
    )


def _with_statuses(world: World, agents: Collection[AgentId], now: float) -> World:
    """Update the status of resting agents to agree with their records."""
    changed: dict[AgentId, TunnelStatus] = {}
    gone = set()
    for id_ in agents:
        record, status = world.records[id_], world.tunnels.get(id_)
        if status is not None and not isinstance(status, Resting):
            continue
        if not record.present:
            if status is not None:
                gone.add(id_)
        elif status is None:
            changed[id_] = resting_status(record, now)
        elif status.phase is not resting_phase(record):
            # Evidence that is sought again before each dial must not make the dials forget their failures.
            changed[id_] = replace(resting_status(record, now, status.life), failures=status.failures)
    if not changed and not gone:
        return world
    kept = {id_: status for id_, status in world.tunnels.items() if id_ not in gone} if gone else world.tunnels
    return replace(world, tunnels={**kept, **changed})
