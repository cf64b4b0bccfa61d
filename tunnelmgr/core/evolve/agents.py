"""Which agents exist: the configuration, the sources' answers and their events.

Rules:
- An agent leaves when its source reports its end, or when two complete listings in a row lack it; if they lack many of
  the source's agents, only after a time (`core/missing_agents.py`).
- The source that listed an agent first keeps it; answers of a source that is not configured are ignored.
- An agent whose end an event reported does not return in the same incarnation, even if a listing has it.
- When the rules change, an agent's group changes at once (`Rules.group_of`), not with its source's next answer.
"""

from dataclasses import replace

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import AgentEnded, AgentsDiscovered, DiscoveryFailed, FeedClosed, FeedReported
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.missing_agents import FAILURE_SHARE, grace_period, missing_agents, present_records
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.world import Record, SourceView, World

MISSES_TO_LEAVE = 2


def reconfigured(world: World, rules: Rules, now: float) -> Transition:
    """Put agents into their groups, and drop evidence that is no longer accepted and agents without a source."""
    records = {}
    for id_, known in world.records.items():
        record = _regrouped(known, rules.group_of(known.agent), now) if known.present else known
        trust = record.trust
        if trust and not _stands(trust, record.agent, rules, world.rules):
            trust = None
        present = record.present and record.agent.source in rules.trust
        if record.present and not present:
            record = _left(record, f"source {record.agent.source} is no longer configured", now)
        records[id_] = replace(record, trust=trust)
    sources = {name: world.sources.get(name, SourceView(name)) for name in rules.trust}
    return Transition(replace(world, rules=rules, records=records, sources=sources), records)


def discovered(world: World, event: AgentsDiscovered, now: float) -> Transition:
    """Apply a source's answer."""
    source = event.source
    if source not in world.sources:
        return Transition(world)  # the answer to a question from before a reload
    changed = _listed(world, event, now) | _unlisted(world, event, now)
    after = replace(world, records={**world.records, **changed}) if changed else world
    return Transition(replace(after, sources={**world.sources, source: _view(world, after, event, now)}), changed)


def _view(world: World, after: World, event: AgentsDiscovered, now: float) -> SourceView:
    """Return the health of a source after its answer; a listing that lacks most of its agents is a failure."""
    snapshot, view = event.snapshot, world.sources[event.source]
    unlisted, before = len(snapshot.unlisted), len(present_records(world, event.source))
    unknown = sum(record.missed > 0 for record in present_records(after, event.source))
    failures = list(snapshot.failures)
    if unlisted + unknown > FAILURE_SHARE * before:
        failures.append(
            f"its listing lacks {unlisted + unknown} of {before} agents: {unlisted} were found by their ids, "
            f"{unknown} stay for up to {grace_period(unknown, before):.0f} s"
        )
    error = "; ".join(failures) or None
    last = view.last_success if error else now
    return replace(view, ok=error is None, last_success=last, error=error, missing=unlisted + unknown)


def discovery_failed(world: World, event: DiscoveryFailed) -> World:
    """Record that a source did not answer; its agents stay."""
    known = world.sources.get(event.source)
    if known is None:
        return world
    return replace(world, sources={**world.sources, event.source: replace(known, ok=False, error=event.error)})


def _stands(trust: HostTrust, agent: Agent, rules: Rules, before: Rules) -> bool:
    """Return whether evidence that was accepted under the rules `before` is accepted under the new ones."""
    certified = trust.method is Method.AUTHORITY
    return rules.accepts(agent, trust.method) and not (certified and rules.trusts_less(agent.source, before))


def _listed(world: World, event: AgentsDiscovered, now: float) -> dict[AgentId, Record]:
    """Return the new records of the agents about which the snapshot says something new."""
    changed = {}
    for described in event.snapshot.agents:
        known = world.records.get(described.id)
        agent = _incarnated(known, _grouped(described, world.rules))
        if known is not None and known.ended and known.agent.incarnation == agent.incarnation:
            continue  # the listing lags behind the event that ended it
        if known is not None and known.present:
            if known.agent.source != event.source:
                continue  # the source that listed it first keeps it
            if known.agent == agent and not known.missed:
                continue
        changed[agent.id] = _seen(known, agent, world.rules, now)
    return changed


def _unlisted(world: World, event: AgentsDiscovered, now: float) -> dict[AgentId, Record]:
    """Return the new records of the source's agents that the snapshot lacks."""
    snapshot, changed = event.snapshot, {}
    listed = {agent.id for agent in snapshot.agents}
    members = present_records(world, event.source)
    wait = grace_period(len(missing_agents(world, event.source, snapshot)), len(members)) if members else 0.0
    for record in members:
        id_ = record.agent.id
        if id_ in listed:
            continue
        if id_ in snapshot.gone:
            changed[id_] = _left(record, "its source reports that it has ended", now)
        elif snapshot.failures:
            continue  # a partial answer: absence means nothing
        elif snapshot.absence_is_proof or _missed_enough(record, 0.0 if id_ in snapshot.outside else wait, now):
            changed[id_] = _left(record, "its source no longer lists it", now)
        elif record.missed < MISSES_TO_LEAVE:
            since = record.missing_since if record.missed else now
            changed[id_] = replace(record, missed=record.missed + 1, missing_since=since)
    return changed


def _missed_enough(record: Record, wait: float, now: float) -> bool:
    """Return whether complete listings have lacked an agent often enough, and for at least `wait` seconds."""
    return record.missed + 1 >= MISSES_TO_LEAVE and now - record.missing_since >= wait


def _seen(known: Record | None, agent: Agent, rules: Rules, now: float) -> Record:
    if known is None:
        fresh = Record(agent=agent, first_seen=now, changed=now)
        return fresh.with_step(now, "seen", f"at {agent.address}, group {agent.group}, by source {agent.source}")
    record = known
    if known.agent.incarnation != agent.incarnation:
        mark = replace(known.quarantine, disputed=()) if known.quarantine else None
        record = replace(record, trust=None, proved=None, possessed=(), quarantine=mark, ended=False, excess=None)
        record = record.with_step(now, "rebuilt", f"incarnation {agent.incarnation}")
    elif not known.present:
        record = record.with_step(now, "seen", f"again, at {agent.address}")
    elif known.agent.addresses != agent.addresses or known.agent.port != agent.port:
        record = record.with_step(now, "moved", f"to {agent.address}")
    record = _regrouped(record, agent.group, now)
    if record.trust and not rules.accepts(agent, record.trust.method):
        record = replace(record, trust=None)
    return replace(record, agent=agent, present=True, missed=0)


def _grouped(agent: Agent, rules: Rules) -> Agent:
    """Return an agent as its source describes it, in the group that the rules put it into."""
    group = rules.group_of(agent)
    return agent if group == agent.group else replace(agent, group=group)


def _regrouped(record: Record, group: str, now: float) -> Record:
    """Return the record with its agent in a group; a change is part of its history."""
    before = record.agent.group
    if group == before:
        return record
    changed = replace(record, agent=replace(record.agent, group=group))
    return changed.with_step(now, "regrouped", f"from {before} to {group}")


def _incarnated(known: Record | None, agent: Agent) -> Agent:
    """Return the agent with the number of rebuilds under its id in its incarnation: `#1` after the first."""
    if known is None:
        return agent
    base, _, count = known.agent.incarnation.partition("#")
    if base != agent.incarnation:
        return agent
    rebuilds = int(count or 0) + (agent.rebuilding and not known.agent.rebuilding)
    return replace(agent, incarnation=f"{base}#{rebuilds}") if rebuilds else agent


def agent_ended(world: World, event: AgentEnded, now: float) -> Transition:
    """Remove an agent whose end its source's event feed has reported; no listing can bring it back."""
    record = world.records.get(event.agent)
    if record is None or not record.present or record.agent.source != event.source:
        return Transition(world)
    over = replace(_left(record, event.why, now), ended=True)
    return Transition(world.with_record(over), {event.agent})


def feed_reported(world: World, event: FeedReported | FeedClosed) -> World:
    """Record the health of a source's event feed; a feed that was closed has none."""
    known = world.sources.get(event.source)
    if known is None:
        return world
    if isinstance(event, FeedClosed):
        view = replace(known, feed_ok=None, feed_error=None)
    else:
        view = replace(known, feed_ok=event.error is None, feed_error=event.error)
    return replace(world, sources={**world.sources, event.source: view})


def _left(record: Record, why: str, now: float) -> Record:
    return replace(record, present=False, missed=0, possessed=()).with_step(now, "left", why)
