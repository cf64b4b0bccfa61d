"""Which agent holds each host key, computed from what all agents claim; `claims.py` has the rules."""

from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.evolve.quarantine import left_to_operator, quarantined, refused
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import Method
from tunnelmgr.core.world import Quarantine, Record, World
from tunnelmgr.errors import HostKeySharedError, Pace, release_command


def assigned(world: World, now: float) -> World:
    """Assign each key to an agent, and decide between agents that claim the same key."""
    while True:
        decided, ties = _assigned(world, now)
        if decided.records is world.records:
            for one, other, key in ties:
                decided = _disputed(decided, (one, other), key, now)
        if decided.records is world.records:
            decided = _decided(decided, now)
        if decided.records is world.records:
            return decided
        world = decided  # a refused agent claims fewer keys, which may decide between others


def claimed(record: Record) -> tuple[str, ...]:
    """Return the keys that an agent claims."""
    if not record.present:
        return ()
    if record.possessed:
        return record.possessed
    if record.quarantine is not None:
        return record.quarantine.disputed
    return record.trust.keys if record.trust else ()


def _precedence(record: Record) -> tuple[bool, bool]:
    """Sort agents that possess a key first, those not in quarantine before others: no later claim may harm them."""
    return not record.possessed, record.quarantine is not None


def _disputes(record: Record, key: str) -> bool:
    return record.quarantine is not None and key in record.quarantine.disputed


def in_dispute(world: World, one: AgentId, other: AgentId, key: str) -> bool:
    """Return whether two agents are in dispute over a key."""
    return _disputes(world.records[one], key) and _disputes(world.records[other], key)


def _assigned(world: World, now: float) -> tuple[World, list[tuple[AgentId, AgentId, str]]]:
    """Give each key to the claimant of the highest rank and refuse the others; return also those of equal rank."""
    holders: dict[str, AgentId] = {}
    ties = []
    claimants = [id_ for id_, record in world.records.items() if claimed(record)]
    for id_ in sorted(claimants, key=lambda id_: _precedence(world.records[id_])):
        for key in claimed(world.records[id_]):
            if key not in claimed(world.records[id_]):
                break  # it was refused for the key before
            holder = holders.get(key, id_)
            if holder == id_ or key not in claimed(world.records[holder]):
                holders[key] = id_
                continue
            if in_dispute(world, id_, holder, key):
                continue
            ours, theirs = _rank(world.records[id_], key), _rank(world.records[holder], key)
            if theirs > ours or theirs.possessed:
                world = refused(world, id_, holder, key, now)
            elif ours > theirs:
                world = refused(world, holder, id_, key, now)
                holders[key] = id_
            else:
                ties.append((id_, holder, key))
    return replace(world, key_holders=holders), ties


class _Rank(NamedTuple):
    """The strength of a claim to a key; the greater rank wins."""

    possessed: bool
    strength: int


def _rank(record: Record, key: str) -> _Rank:
    method = record.proved.method if record.proved else Method.TOFU  # without evidence there is no claim
    return _Rank(key in record.possessed, method.strength)


def _disputed(world: World, claimants: tuple[AgentId, AgentId], key: str, now: float) -> World:
    """Quarantine two agents until one of them shows the key that both claim."""
    for one, other in (claimants, claimants[::-1]):
        message = (
            f"{one} and {other} claim the same host key ({fingerprint(key)}) with equally strong evidence. "
            "The controller asks each to show it, and releases the one that alone can. "
            f"If both can, remove the wrong machine, then run: {release_command(one)}"
        )
        world = quarantined(world, one, Failure(HostKeySharedError.code, Pace.NEVER, message), now)
        record = world.records[one]
        mark = record.quarantine or Quarantine(now, HostKeySharedError.code, message)
        mark = replace(mark, disputed=tuple(dict.fromkeys((*mark.disputed, key))), examined=False)
        world = world.with_record(replace(record, quarantine=mark))
    return world


def _decided(world: World, now: float) -> World:
    """End the disputes that can be decided."""
    marks = (record.quarantine for record in world.records.values() if record.present)
    for key in dict.fromkeys(chain.from_iterable(mark.disputed for mark in marks if mark)):
        world = _decided_over(world, key, now)
    return world


def _decided_over(world: World, key: str, now: float) -> World:
    """End the dispute over a key, if its holder is not part of it, or if all have been asked and some have shown it."""
    group = [record for record in world.records.values() if record.present and _disputes(record, key)]
    showing = [record.agent.id for record in group if key in record.possessed]
    holder = world.key_holders[key]
    outside = holder not in {record.agent.id for record in group}
    if not outside and (not showing or not all(record.quarantine.examined for record in group if record.quarantine)):
        return world
    if len(showing) > 1 and not outside:
        found = f"{', '.join(showing)} have shown the same host key ({fingerprint(key)}) and cannot be told apart"
        advice = "An image that contains host keys causes this. Remove the wrong machine, then run"
        for id_ in showing:
            world = left_to_operator(world, id_, f"{found}. {advice}: {release_command(id_)}", now)
    winner = holder if outside else showing[0]
    for record in group:
        if record.agent.id != winner:
            world = refused(world, record.agent.id, winner, key, now)
    return world if outside or len(showing) > 1 else _freed(world, winner, now)


def _freed(world: World, agent: AgentId, now: float) -> World:
    freed = replace(world.records[agent], quarantine=None)
    return world.with_record(
        freed.with_step(now, "released", "only this agent has shown the key that others claim too")
    )
