"""The evidence for an agent's host key: found, missing or contradicted.

Rules:
- Evidence belongs to one incarnation. If another agent's evidence names the same key, `claims.py` decides.
- The evidence that proved an incarnation remains the minimum: evidence of another key quarantines the agent, and
  weaker evidence is ignored.
- A seed proves the first agent that names it, and no other.
"""

from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.backoff import retry_at
from tunnelmgr.core.events import EvidenceAbsent, EvidenceContradicted, EvidenceFound
from tunnelmgr.core.evolve.quarantine import quarantined
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase, Resting, Seeking, at_rest
from tunnelmgr.core.world import Record, World
from tunnelmgr.errors import HostKeyMismatchError, HostKeyUnknownError, Pace, release_command


def found(world: World, event: EvidenceFound, now: float) -> Transition:
    """Accept evidence, if the rules and the agent's earlier evidence allow it."""
    record = world.records.get(event.agent)
    if record is None:
        return Transition(world)
    if record.agent.incarnation == event.incarnation:
        ignored = _why_ignored(world, record, event.trust)
        if ignored is not None:
            # Treated as missing evidence, so that the next search, which would find the same, waits.
            return absent(world, EvidenceAbsent(event.agent, event.incarnation, ignored), now)
    world = _search_ended(world, event.agent)
    if not record.present or record.agent.incarnation != event.incarnation or record.trust is not None:
        return Transition(world, {event.agent})
    before = record.proved
    if before is not None and set(before.keys).isdisjoint(event.trust.keys):
        message = _mismatch(event.agent, before, event.trust)
        return contradicted(world, EvidenceContradicted(event.agent, event.incarnation, message), now)
    return Transition(_believed(world, record, event.trust, now), {event.agent})


def _believed(world: World, record: Record, trust: HostTrust, now: float) -> World:
    record = replace(record, trust=trust, proved=trust)
    detail = f" ({trust.detail})" if trust.detail else ""
    return _claimed(world.with_record(record.with_step(now, "evidence", f"{_summary(trust)}{detail}")), record, trust)


def _why_ignored(world: World, record: Record, trust: HostTrust) -> str | None:
    """Return why evidence is ignored, None if it counts."""
    if not world.rules.accepts(record.agent, trust.method):
        return f"{trust.method}: the configuration no longer accepts this method"
    if record.proved is not None and not trust.method.reaches(record.proved.method):
        return (
            f"{trust.method}: is weaker than {record.proved.method}, which proved this agent before. "
            f"If that is intended, run: {release_command(record.agent.id)}"
        )
    seed = _seed_of(world, trust)
    if trust.method is Method.SEEDED and (seed is None or not seed.serves(record.agent)):
        return "seeded: its seed was used already, or has expired"
    return None


def _seed_of(world: World, trust: HostTrust) -> Seed | None:
    return next((seed for seed in world.seeds.values() if seed.key in trust.keys), None)


def _claimed(world: World, record: Record, trust: HostTrust) -> World:
    """Record that an agent which a seed has proved is the seed's holder."""
    seed = _seed_of(world, trust) if trust.method is Method.SEEDED else None
    if seed is None:
        return world
    taken = replace(seed, holder=record.agent.id, incarnation=record.agent.incarnation)
    return replace(world, seeds={**world.seeds, seed.id: taken})


def _summary(trust: HostTrust) -> str:
    return f"{trust.method}: {' '.join(trust.fingerprints)}"


def _mismatch(agent: AgentId, before: HostTrust, now: HostTrust) -> str:
    """Return the message for evidence that names another key than the evidence before."""
    cause = (
        "The host_key in the configuration may be wrong, or another machine may have taken its place"
        if Method.PINNED in {before.method, now.method}
        else "Another machine may have taken its place"
    )
    return (
        f"host key mismatch: {before.method} evidence proved {agent} by {' or '.join(before.fingerprints)}, but "
        f"{now.method} evidence now names {' or '.join(now.fingerprints)}. {cause}. "
        f"Investigate, then run: {release_command(agent)}"
    )


def absent(world: World, event: EvidenceAbsent, now: float) -> Transition:
    """Wait for evidence, and record what is missing."""
    record, status = world.records.get(event.agent), world.tunnels.get(event.agent)
    if record is None or not isinstance(status, Resting | Seeking) or status.phase is not Phase.AWAITING_IDENTITY:
        return Transition(world)
    if record.agent.incarnation != event.incarnation:
        # The next search is about the machine that is there now.
        return Transition(_search_ended(world, event.agent), {event.agent})
    failures = status.failures + 1
    if status.message != event.message:
        world = world.with_record(record.with_step(now, "waiting", event.message))
    waiting = replace(
        at_rest(status),
        failures=failures,
        error=HostKeyUnknownError.code,
        message=event.message,
        retry_at=retry_at(HostKeyUnknownError.retry, failures, now, event.agent),
    )
    return Transition(world.with_tunnel(event.agent, waiting), {event.agent})


def contradicted(world: World, event: EvidenceContradicted, now: float) -> Transition:
    """Quarantine an agent at whose address another machine was found, or whose evidence has changed."""
    record = world.records.get(event.agent)
    if record is None:
        return Transition(world)
    world = _search_ended(world, event.agent)
    if record.present and record.agent.incarnation == event.incarnation:
        failure = Failure(HostKeyMismatchError.code, Pace.NEVER, event.message)
        world = quarantined(world, event.agent, failure, now)
    return Transition(world, {event.agent})


def _search_ended(world: World, agent: AgentId) -> World:
    status = world.tunnels.get(agent)
    if not isinstance(status, Seeking) or status.phase is not Phase.AWAITING_IDENTITY:
        return world
    return world.with_tunnel(agent, status.resting)
