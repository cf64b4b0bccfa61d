"""What is believed of an agent's key.

Rules:
- Evidence belongs to an incarnation. Where another agent's evidence names the same key, `claims` decides.
- What was believed of an incarnation stays the measure: another key quarantines, a weaker word does not count.
- A seed proves the first agent that names it, and nobody else.
"""

from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.backoff import retry_at
from tunnelmgr.core.events import EvidenceAbsent, EvidenceContradicted, EvidenceFound, Failure
from tunnelmgr.core.evolve.claims import claims_entered
from tunnelmgr.core.evolve.common import at_rest, quarantined, respecified, rested
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase, Resting, Seeking
from tunnelmgr.core.world import Record, World
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, Pace


def found(world: World, event: EvidenceFound, now: float) -> World:
    """Believe what a trust source says, if it may be believed."""
    record = world.records.get(event.agent)
    if record is None:
        return world
    if record.agent.incarnation == event.incarnation:
        useless = _why_useless(world, record, event.trust)
        if useless is not None:
            # As good as none; asking again at once would only bring the same.
            return absent(world, EvidenceAbsent(event.agent, event.incarnation, useless), now)
    world = _stop_seeking(world, event.agent, now)
    if not record.present or record.agent.incarnation != event.incarnation or record.trust is not None:
        return world
    before = record.proved
    if before is not None and set(before.keys).isdisjoint(event.trust.keys):
        message = f"{event.agent} was proved by {_told(before)}, and now {_told(event.trust)}; look, then release it"
        return contradicted(world, EvidenceContradicted(event.agent, event.incarnation, message), now)
    return _believed(world, record, event.trust, now)


def _believed(world: World, record: Record, trust: HostTrust, now: float) -> World:
    id_ = record.agent.id
    record = respecified(replace(record, trust=trust, proved=trust), world.rules)
    detail = f" ({trust.detail})" if trust.detail else ""
    world = _claimed(world.with_record(record.told(now, "evidence", f"{_told(trust)}{detail}")), record, trust)
    return rested(claims_entered(world, id_, now), {id_}, now)


def _why_useless(world: World, record: Record, trust: HostTrust) -> str | None:
    """Return why evidence counts for nothing, None if it counts."""
    if not world.rules.accepts(record.agent, trust.method):
        return f"{trust.method}: is not believed any more"
    if record.proved is not None and not trust.method.reaches(record.proved.method):
        return f"{trust.method}: is weaker than {record.proved.method}, by which it was proved before"
    seed = _seed_of(world, trust)
    if trust.method is Method.SEEDED and (seed is None or not seed.serves(record.agent)):
        return "seeded: its seed was used already, or has expired"
    return None


def _seed_of(world: World, trust: HostTrust) -> Seed | None:
    return next((seed for seed in world.seeds.values() if seed.key in trust.keys), None)


def _claimed(world: World, record: Record, trust: HostTrust) -> World:
    """Make an agent that a seed has proved the seed's holder."""
    seed = _seed_of(world, trust) if trust.method is Method.SEEDED else None
    if seed is None:
        return world
    taken = replace(seed, holder=record.agent.id, incarnation=record.agent.incarnation)
    return replace(world, seeds={**world.seeds, seed.id: taken})


def _told(trust: HostTrust) -> str:
    return f"{trust.method}: {' '.join(trust.fingerprints)}"


def absent(world: World, event: EvidenceAbsent, now: float) -> World:
    """Wait, and say for what."""
    record, status = world.records.get(event.agent), world.tunnels.get(event.agent)
    if record is None or not isinstance(status, Resting | Seeking) or status.phase is not Phase.AWAITING_IDENTITY:
        return world
    if record.agent.incarnation != event.incarnation:
        return _stop_seeking(world, event.agent, now)  # the next search is about the machine that is there now
    failures = status.failures + 1
    if status.message != event.message:
        world = world.with_record(record.told(now, "waiting", event.message))
    waiting = replace(
        at_rest(status),
        failures=failures,
        error=HostKeyUnknownError.code,
        message=event.message,
        retry_at=retry_at(HostKeyUnknownError.retry, failures, now, event.agent),
    )
    return rested(world.with_tunnel(event.agent, waiting), {event.agent}, now)


def contradicted(world: World, event: EvidenceContradicted, now: float) -> World:
    """Quarantine an agent at whose address another machine was found, or whose evidence has changed."""
    record = world.records.get(event.agent)
    if record is None or not record.present or record.agent.incarnation != event.incarnation:
        return world if record is None else _stop_seeking(world, event.agent, now)
    failure = Failure(HostKeyMismatchError.code, Pace.NEVER, event.message)
    return quarantined(_stop_seeking(world, event.agent, now), event.agent, failure, now)


def _stop_seeking(world: World, agent: AgentId, now: float) -> World:
    status = world.tunnels.get(agent)
    if not isinstance(status, Seeking) or status.phase is not Phase.AWAITING_IDENTITY:
        return world
    world = world.with_tunnel(agent, status.resting)
    return rested(world, {agent}, now)
