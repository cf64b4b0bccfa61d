"""How each event changes the world. Nothing here acts; `reconcile` reads off what is to be done.

Rules:
- A report from an earlier life of a tunnel changes nothing.
- An agent leaves when its source says so, or when two complete listings in a row lack it.
- Evidence belongs to an incarnation and to one agent; a second claim to a key quarantines both.
- Two present agents never share a key unquarantined, however they came by it.
- A quarantine outlives absence and restarts; only a release ends it, or forgetting the agent altogether.
- A source that is not configured (any more) tells nothing.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.backoff import retry_at
from tunnelmgr.core.events import (
    AgentsDiscovered,
    DiscoveryFailed,
    DrainRequested,
    Event,
    EvidenceAbsent,
    EvidenceFound,
    Failure,
    MemoryExpired,
    Reconfigured,
    ReleaseRequested,
    RetryRequested,
    Rules,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.trust import fingerprint
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import Quarantine, Record, SourceView, World, resting_phase, resting_status, spec_for
from tunnelmgr.errors import HostKeySharedError, HostKeyUnknownError, ListenRefusedError, Pace

MISSES_TO_LEAVE = 2
SETTLED = 10.0
"""A tunnel that was up for so many seconds starts its retries afresh when it ends."""


def evolve(world: World, event: Event, now: float) -> World:  # noqa: C901, PLR0911 - one arm an event
    """Return the world after `event`."""
    match event:
        case Reconfigured(rules):
            return _reconfigured(world, rules, now)
        case AgentsDiscovered():
            return _discovered(world, event, now)
        case DiscoveryFailed():
            return _discovery_failed(world, event)
        case EvidenceFound():
            return _evidence_found(world, event, now)
        case EvidenceAbsent():
            return _evidence_absent(world, event, now)
        case TunnelDialled() | TunnelBound() | TunnelProbed():
            return _progress(world, event, now)
        case TunnelEnded():
            return _ended(world, event, now)
        case RetryRequested(agent):
            return _retry(world, agent, now)
        case ReleaseRequested(agent, reason):
            return _release(world, agent, reason, now)
        case DrainRequested():
            return replace(world, draining=True)
        case MemoryExpired(before):
            return _forget(world, before)
    assert_never(event)


# --- configuration and discovery ---------------------------------------------------------------------------------


def _reconfigured(world: World, rules: Rules, now: float) -> World:
    """Drop the evidence that the rules no longer accept, and the agents whose source is no longer there."""
    records = {}
    for id_, record in world.records.items():
        trust = record.trust
        if trust and not rules.accepts(record.agent, trust.method):
            trust = None
        present = record.present and record.agent.source in rules.trust
        if record.present and not present:
            record = _left(record, f"source {record.agent.source} is no longer configured", now)  # noqa: PLW2901
        records[id_] = _respecified(replace(record, trust=trust), rules)
    sources = {name: world.sources.get(name, SourceView(name)) for name in rules.trust}
    return _rested(_keys_assigned(replace(world, rules=rules, records=records, sources=sources), now), records, now)


def _discovery_failed(world: World, event: DiscoveryFailed) -> World:
    known = world.sources.get(event.source)
    if known is None:
        return world
    return replace(world, sources={**world.sources, event.source: replace(known, ok=False, error=event.error)})


def _discovered(world: World, event: AgentsDiscovered, now: float) -> World:
    snapshot, source = event.snapshot, event.source
    if source not in world.sources:
        return world  # the answer to a question from before a reload
    changed = _listed(world, event, now) | _unlisted(world, event, now)
    error = "; ".join(snapshot.failures) or None
    last = world.sources[source].last_success if error else now
    view = SourceView(source, ok=error is None, last_success=last, error=error)
    after = replace(world, records={**world.records, **changed}, sources={**world.sources, source: view})
    return _rested(_keys_assigned(after, now), changed, now) if changed else after


def _listed(world: World, event: AgentsDiscovered, now: float) -> dict[AgentId, Record]:
    """Return the new records of those agents in the snapshot that it says something new about."""
    changed = {}
    for agent in event.snapshot.agents:
        known = world.records.get(agent.id)
        if known is not None and known.present:
            if known.agent.source != event.source:
                continue  # the source that had it first keeps it
            if known.agent == agent and not known.missed:
                continue
        changed[agent.id] = _seen(known, agent, world.rules, now)
    return changed


def _unlisted(world: World, event: AgentsDiscovered, now: float) -> dict[AgentId, Record]:
    """Return the new records of the source's agents that the snapshot lacks."""
    snapshot, changed = event.snapshot, {}
    listed = {agent.id for agent in snapshot.agents}
    for id_, record in world.records.items():
        if record.agent.source != event.source or not record.present or id_ in listed:
            continue
        if id_ in snapshot.gone:
            changed[id_] = _left(record, "its source says that it has ended", now)
        elif snapshot.failures:
            continue  # half an answer: absence means nothing
        elif snapshot.absence_is_proof or record.missed + 1 >= MISSES_TO_LEAVE:
            changed[id_] = _left(record, "its source lists it no more", now)
        else:
            changed[id_] = replace(record, missed=record.missed + 1)
    return changed


def _seen(known: Record | None, agent: Agent, rules: Rules, now: float) -> Record:
    if known is None:
        fresh = Record(agent=agent, first_seen=now, changed=now)
        return fresh.told(now, "seen", f"at {agent.address}, group {agent.group}, by source {agent.source}")
    record = known
    if known.agent.incarnation != agent.incarnation:
        record = replace(record, trust=None).told(now, "rebuilt", f"incarnation {agent.incarnation}")
    elif not known.present:
        record = record.told(now, "seen", f"again, at {agent.address}")
    elif known.agent.addresses != agent.addresses or known.agent.port != agent.port:
        record = record.told(now, "moved", f"to {agent.address}")
    if record.trust and not rules.accepts(agent, record.trust.method):
        record = replace(record, trust=None)
    return _respecified(replace(record, agent=agent, present=True, missed=0), rules)


def _left(record: Record, why: str, now: float) -> Record:
    return replace(record, present=False, missed=0).told(now, "left", why)


def _respecified(record: Record, rules: Rules) -> Record:
    spec = spec_for(record, rules)
    return record if spec == record.spec else replace(record, spec=spec)


def _keys_assigned(world: World, now: float) -> World:
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
            world = _shared(world, (holder, id_), key, now)
    return replace(world, key_holders=holders)


def _rested(world: World, agents: Iterable[AgentId], now: float) -> World:
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
            tunnels[id_] = resting_status(record, now, status.life if status else 0)
    return replace(world, tunnels=tunnels)


# --- evidence ----------------------------------------------------------------------------------------------------


def _evidence_found(world: World, event: EvidenceFound, now: float) -> World:
    record = world.records.get(event.agent)
    if record is None:
        return world
    if record.agent.incarnation == event.incarnation and not world.rules.accepts(record.agent, event.trust.method):
        # As good as none; asking again at once would only bring the same.
        useless = f"{event.trust.method}: is not believed any more"
        return _evidence_absent(world, EvidenceAbsent(event.agent, event.incarnation, useless), now)
    world = _stop_seeking(world, event.agent, now)
    if not record.present or record.agent.incarnation != event.incarnation or record.trust is not None:
        return world
    prints = " ".join(event.trust.fingerprints)
    record = _respecified(replace(record, trust=event.trust), world.rules)
    record = record.told(now, "evidence", f"{event.trust.method}: {prints}")
    world = world.with_record(record)
    for key in event.trust.keys:
        if key in world.key_holders:
            world = _shared(world, (event.agent, world.key_holders[key]), key, now)
    world = replace(world, key_holders={**world.key_holders, **dict.fromkeys(event.trust.keys, event.agent)})
    return _rested(world, {event.agent}, now)


def _shared(world: World, twins: tuple[AgentId, AgentId], key: str, now: float) -> World:
    """Quarantine two agents that claim one key: neither can be told from the other."""
    for one, other in (twins, twins[::-1]):
        claim = f"{one} and {other} claim one host key ({fingerprint(key)})"
        message = f"{claim}; remove the wrong one, then `tunnelmgr release`"
        world = _quarantined(world, one, Failure(HostKeySharedError.code, Pace.NEVER, message), now)
    return world


def _evidence_absent(world: World, event: EvidenceAbsent, now: float) -> World:
    record, status = world.records.get(event.agent), world.tunnels.get(event.agent)
    if record is None or status is None or status.phase is not Phase.AWAITING_IDENTITY:
        return world
    if record.agent.incarnation != event.incarnation:
        return _stop_seeking(world, event.agent, now)  # the next search is about the machine that is there now
    failures = status.failures + 1
    if status.message != event.message:
        world = world.with_record(record.told(now, "waiting", event.message))
    waiting = replace(
        status,
        working=False,
        failures=failures,
        error=HostKeyUnknownError.code,
        message=event.message,
        retry_at=retry_at(HostKeyUnknownError.retry, failures, now, event.agent),
    )
    return _rested(world.with_tunnel(event.agent, waiting), {event.agent}, now)


def _stop_seeking(world: World, agent: AgentId, now: float) -> World:
    status = world.tunnels.get(agent)
    if status is None or status.phase is not Phase.AWAITING_IDENTITY:
        return world
    world = world.with_tunnel(agent, replace(status, working=False))
    return _rested(world, {agent}, now)


# --- the tunnel's life -------------------------------------------------------------------------------------------


def _progress(world: World, event: TunnelDialled | TunnelBound | TunnelProbed, now: float) -> World:
    record, status = world.records.get(event.agent), world.tunnels.get(event.agent)
    if record is None or status is None or not status.working or status.life != event.life:
        return world
    match event:
        case TunnelDialled(address=address):
            return world.with_record(record.told(now, "dialled", f"{address}, its key is as expected"))
        case TunnelBound():
            return _bound(world, event, now)
        case TunnelProbed(took=took):
            probed = replace(status, probed_at=now, probe_ms=took * 1000)
            if status.phase is Phase.CONNECTING:
                world = world.with_record(record.told(now, "probed", f"up, {took * 1000:.1f} ms there and back"))
                error, message = _defect(status.squatted)
                probed = replace(probed, phase=Phase.UP, since=now, error=error, message=message, retry_at=None)
            return world.with_tunnel(event.agent, probed)
    assert_never(event)


def _bound(world: World, event: TunnelBound, now: float) -> World:
    status = world.tunnels[event.agent]
    bound = replace(status, held=event.held, refused=event.refused, squatted=event.squatted)
    if bound == status:
        return world
    detail = ", ".join(map(str, event.held))
    if event.refused:
        detail += f"; not {', '.join(map(str, event.refused))}"
    if event.squatted:
        detail += " (another process there holds it)"
    if status.phase is Phase.UP:
        error, message = _defect(event.squatted)
        bound = replace(bound, error=error, message=message)
    world = world.with_record(world.records[event.agent].told(now, "bound", detail))
    return world.with_tunnel(event.agent, bound)


def _defect(squatted: tuple[str, ...]) -> tuple[str | None, str]:
    """Name what is wrong with a tunnel that is up all the same."""
    if not squatted:
        return None, ""
    message = f"another process on the agent answers on {', '.join(squatted)}, where clients may ask first"
    return ListenRefusedError.code, message


def _ended(world: World, event: TunnelEnded, now: float) -> World:
    record, status = world.records.get(event.agent), world.tunnels.get(event.agent)
    if record is None or status is None or not status.working or status.life != event.life:
        return world
    failure = event.failure
    if failure is None or status.revoked or status.phase is Phase.DRAINING:
        world = world.with_record(record.told(now, "closed", failure.message if failure else "as asked"))
        world = world.with_tunnel(event.agent, resting_status(record, now, status.life))
    else:
        world = _failed(world, record, failure, now)
    return _rested(world, {event.agent}, now)


def _failed(world: World, record: Record, failure: Failure, now: float) -> World:
    id_, status = record.agent.id, world.tunnels[record.agent.id]
    step = "lost" if status.phase is Phase.UP else "failed"
    world = world.with_record(record.told(now, step, failure.message))
    if failure.retry is Pace.NEVER:
        world = _quarantined(world, id_, failure, now)
    ended = resting_status(world.records[id_], now, status.life)
    if ended.phase is not Phase.QUARANTINED:
        settled = status.phase is Phase.UP and now - status.since >= SETTLED
        failures = 1 if settled else status.failures + 1
        at = retry_at(failure.retry, failures, now, f"{id_}/{status.life}")
        ended = replace(ended, failures=failures, error=failure.code, message=failure.message, retry_at=at)
    return world.with_tunnel(id_, ended)


def _quarantined(world: World, agent: AgentId, failure: Failure, now: float) -> World:
    record = world.records[agent]
    if record.quarantine is not None:
        return world
    mark = Quarantine(since=now, code=failure.code, message=failure.message)
    world = world.with_record(replace(record, quarantine=mark).told(now, "quarantined", failure.message))
    return _rested(world, {agent}, now)


# --- people, and time --------------------------------------------------------------------------------------------


def _retry(world: World, agent: AgentId, now: float) -> World:
    status = world.tunnels.get(agent)
    if status is None or status.working:
        return world
    world = world.with_record(world.records[agent].told(now, "retry", "asked for by an operator"))
    return world.with_tunnel(agent, replace(status, failures=0, retry_at=None))


def _release(world: World, agent: AgentId, reason: str, now: float) -> World:
    record = world.records.get(agent)
    if record is None or record.quarantine is None:
        return world
    # What was believed of the key led here; evidence is asked for anew.
    free = _respecified(replace(record, quarantine=None, trust=None), world.rules)
    world = world.with_record(free.told(now, "released", reason or "by an operator"))
    return _rested(_keys_assigned(world, now), {agent}, now)


def _forget(world: World, before: float) -> World:
    working = {id_ for id_, status in world.tunnels.items() if status.working}
    old = {
        id_
        for id_, record in world.records.items()
        if not record.present and record.changed < before and id_ not in working
    }
    return replace(
        world,
        records={id_: record for id_, record in world.records.items() if id_ not in old},
        tunnels={id_: status for id_, status in world.tunnels.items() if id_ not in old},
    )
