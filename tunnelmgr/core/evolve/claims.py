"""Which agent each host key belongs to, where evidence alone may name the keys of others.

A console block, a label or a file can name any public key, so evidence is only a *claim*. Whoever holds the private
half shows it in a handshake; from then on the agent *possesses* the key.

    claimed by one agent  ─▶ dialled with it ─▶ possessed
    claimed by two agents ─▶ decided by rank ─▶ the weaker claimant is quarantined, the other goes on
                          └▶ of equal rank   ─▶ both are quarantined and examined: each is asked for the key
                                                 one shows it     ─▶ that one goes on
                                                 several show it  ─▶ all stay quarantined until a release
                                                 nobody shows it  ─▶ all are asked again

Rules:
- Possession ranks above every method, and the method that is stronger above the others. So a claim never harms an
  agent that was dialled with the key.
- An agent that has shown a key claims no other: what else its evidence named is free for the agent that can show it.
- An agent in quarantine claims nothing but the keys that it possesses and those that are in dispute.
- Possession ends when the agent leaves, is rebuilt or is released.
"""

from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.backoff import retry_at
from tunnelmgr.core.events import Failure, KeyExamined
from tunnelmgr.core.evolve.common import at_rest, quarantined, rested
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.trust import Method
from tunnelmgr.core.tunnel import Phase, Resting, Seeking
from tunnelmgr.core.world import Quarantine, Record, World
from tunnelmgr.errors import HostKeySharedError, Pace


def keys_assigned(world: World, now: float) -> World:
    """Work out again which agent each key belongs to, and decide between those that claim the same."""
    while True:
        decided, ties = _assigned(world, now)
        if decided.records is world.records:
            for one, other, key in ties:
                decided = _disputed(decided, (one, other), key, now)
        if decided.records is world.records:
            decided = _settled(decided, now)
        if decided.records is world.records:
            return decided
        world = decided  # who was refused claims less, which may decide between others


def claims_entered(world: World, agent: AgentId, now: float) -> World:
    """Enter what one agent claims by new evidence, at the cost of a full assignment only where others claim it too."""
    claimed = _claimed(world.records[agent])
    if any(world.key_holders.get(key, agent) != agent for key in claimed):
        return keys_assigned(world, now)
    return replace(world, key_holders={**world.key_holders, **dict.fromkeys(claimed, agent)})


def possession_shown(world: World, agent: AgentId, key: str, now: float) -> World:
    """Take in that an agent has shown a key in a handshake; it is refused where another possesses the key."""
    record = world.records[agent]
    if key in record.possessed:
        return world
    holder = world.key_holders.get(key, agent)
    if holder != agent and key in world.records[holder].possessed and not _in_dispute(world, agent, holder, key):
        return keys_assigned(_refused(world, agent, holder, key, now), now)
    given_up = {one for one in _claimed(record) if one not in record.possessed and one != key}
    record = replace(record, possessed=(*record.possessed, key))
    if record.quarantine is not None and record.quarantine.disputed:
        mark = replace(record.quarantine, disputed=(key,), examined=True)
        return keys_assigned(world.with_record(replace(record, quarantine=mark)), now)
    world = world.with_record(record)
    if given_up:
        holders = {one: id_ for one, id_ in world.key_holders.items() if one not in given_up}
        world = replace(world, key_holders=holders)
    return claims_entered(world, agent, now)


def examined(world: World, event: KeyExamined, now: float) -> World:
    """Take in what an agent in dispute has shown; a disputed key that it has not shown is asked for again."""
    record, status = world.records.get(event.agent), world.tunnels.get(event.agent)
    if record is None or not isinstance(status, Resting | Seeking) or status.phase is not Phase.QUARANTINED:
        return world
    status = at_rest(status)
    world = world.with_tunnel(event.agent, status)
    mark = record.quarantine
    if mark is None or not mark.disputed or not record.present or record.agent.incarnation != event.incarnation:
        return rested(world, {event.agent}, now)
    what = f"showed {fingerprint(event.key)}" if event.key else event.message
    if all((moment.step, moment.detail) != ("examined", what) for moment in record.history):
        record = record.told(now, "examined", what)
    world = world.with_record(replace(record, quarantine=replace(mark, examined=True)))
    if event.key in mark.disputed:
        return possession_shown(world, event.agent, event.key, now)
    failures = status.failures + 1
    later = retry_at(Pace.SLOW, failures, now, event.agent)
    waiting = replace(status, failures=failures, retry_at=later)
    return keys_assigned(world.with_tunnel(event.agent, waiting), now)


def _claimed(record: Record) -> tuple[str, ...]:
    """Return the keys that an agent lays claim to."""
    if not record.present:
        return ()
    if record.possessed:
        return record.possessed
    if record.quarantine is not None:
        return record.quarantine.disputed
    return record.trust.keys if record.trust else ()


def _precedence(record: Record) -> tuple[bool, bool]:
    """Sort first those that no later claim may harm: agents that possess a key, free ones before others."""
    return not record.possessed, record.quarantine is not None


def _disputes(record: Record, key: str) -> bool:
    return record.quarantine is not None and key in record.quarantine.disputed


def _in_dispute(world: World, one: AgentId, other: AgentId, key: str) -> bool:
    return _disputes(world.records[one], key) and _disputes(world.records[other], key)


def _assigned(world: World, now: float) -> tuple[World, list[tuple[AgentId, AgentId, str]]]:
    """Give each key to the claimant of the highest rank and refuse the others; return also those of equal rank."""
    holders: dict[str, AgentId] = {}
    ties = []
    claimants = [id_ for id_, record in world.records.items() if _claimed(record)]
    for id_ in sorted(claimants, key=lambda id_: _precedence(world.records[id_])):
        for key in _claimed(world.records[id_]):
            if key not in _claimed(world.records[id_]):
                break  # it was refused for the key before
            holder = holders.get(key, id_)
            if holder == id_ or key not in _claimed(world.records[holder]):
                holders[key] = id_
                continue
            if _in_dispute(world, id_, holder, key):
                continue
            ours, theirs = _rank(world.records[id_], key), _rank(world.records[holder], key)
            if theirs > ours or theirs.possessed:
                world = _refused(world, id_, holder, key, now)
            elif ours > theirs:
                world = _refused(world, holder, id_, key, now)
                holders[key] = id_
            else:
                ties.append((id_, holder, key))
    return replace(world, key_holders=holders), ties


class _Rank(NamedTuple):
    """How good a claim to a key is; greater is better."""

    possessed: bool
    strength: int


def _rank(record: Record, key: str) -> _Rank:
    method = record.proved.method if record.proved else Method.TOFU  # without evidence there is no claim
    return _Rank(key in record.possessed, method.strength)


def _disputed(world: World, claimants: tuple[AgentId, AgentId], key: str, now: float) -> World:
    """Quarantine two agents until one of them shows the key that both claim."""
    for one, other in (claimants, claimants[::-1]):
        claim = f"{one} and {other} claim one host key ({fingerprint(key)})"
        message = f"{claim} and are asked to show it; where both do, remove the wrong one, then `tunnelmgr release`"
        world = quarantined(world, one, Failure(HostKeySharedError.code, Pace.NEVER, message), now)
        record = world.records[one]
        mark = record.quarantine or Quarantine(now, HostKeySharedError.code, message)
        mark = replace(mark, disputed=tuple(dict.fromkeys((*mark.disputed, key))), examined=False)
        world = world.with_record(replace(record, quarantine=mark))
    return world


def _refused(world: World, agent: AgentId, holder: AgentId, key: str, now: float) -> World:
    """Quarantine a claimant until a release; where it is in dispute, that is over for it."""
    better = "has shown it" if key in world.records[holder].possessed else "has stronger evidence for it"
    claim = f"{agent} claims the host key of {holder} ({fingerprint(key)}), which {better}"
    return _left_to_people(world, agent, f"{claim}; look at {agent}, then `tunnelmgr release`", now)


def _left_to_people(world: World, agent: AgentId, message: str, now: float) -> World:
    record = world.records[agent]
    if record.quarantine is None:
        return quarantined(world, agent, Failure(HostKeySharedError.code, Pace.NEVER, message), now)
    if not record.quarantine.disputed:
        return world
    mark = replace(record.quarantine, message=message, disputed=())
    return world.with_record(replace(record, quarantine=mark).told(now, "refused", message))


def _settled(world: World, now: float) -> World:
    """End the disputes that can be decided."""
    marks = (record.quarantine for record in world.records.values() if record.present)
    for key in dict.fromkeys(chain.from_iterable(mark.disputed for mark in marks if mark)):
        world = _settled_over(world, key, now)
    return world


def _settled_over(world: World, key: str, now: float) -> World:
    """End the dispute over a key, if its holder is not part of it, or if all have been asked and some have shown it."""
    group = [record for record in world.records.values() if record.present and _disputes(record, key)]
    showing = [record.agent.id for record in group if key in record.possessed]
    holder = world.key_holders[key]
    outside = holder not in {record.agent.id for record in group}
    if not outside and (not showing or not all(record.quarantine.examined for record in group if record.quarantine)):
        return world
    if len(showing) > 1 and not outside:
        told = f"{', '.join(showing)} have shown one host key ({fingerprint(key)}) and cannot be told apart"
        for id_ in showing:
            world = _left_to_people(world, id_, f"{told}; remove the wrong one, then `tunnelmgr release`", now)
    winner = holder if outside else showing[0]
    for record in group:
        if record.agent.id != winner:
            world = _refused(world, record.agent.id, winner, key, now)
    return world if outside or len(showing) > 1 else _freed(world, winner, now)


def _freed(world: World, agent: AgentId, now: float) -> World:
    freed = replace(world.records[agent], quarantine=None)
    world = world.with_record(freed.told(now, "released", "it alone has shown the key that others claim too"))
    return rested(world, {agent}, now)
