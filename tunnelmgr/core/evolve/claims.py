"""Decides which agent each host key belongs to; evidence may also name keys of other agents.

A console block, a label or a file can name any public key, so evidence is only a *claim*. A machine that has the
private key shows the key in a handshake; from then on its agent *possesses* the key.

    claimed by one agent  ─▶ dialled with it ─▶ possessed
    claimed by two agents ─▶ decided by rank ─▶ the weaker claimant is quarantined, the other continues
                          └▶ of equal rank   ─▶ both are quarantined and examined: each is asked for the key
                                                 one shows it     ─▶ that one continues
                                                 several show it  ─▶ all stay quarantined until a release
                                                 none shows it    ─▶ all are asked again

Rules:
- Possession ranks above every method, and a stronger method above a weaker one. So a claim never harms an agent that
  was dialled with the key.
- An agent that has shown a key claims no other: any other key of its evidence is free for the agent that can show it.
- An agent in quarantine claims only the keys that it possesses and those in dispute.
- Possession ends when the agent leaves, is rebuilt or is released.
"""

from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.backoff import retry_at
from tunnelmgr.core.events import KeyExamined
from tunnelmgr.core.evolve.key_holders import in_dispute
from tunnelmgr.core.evolve.quarantine import refused
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.tunnel import Phase, Resting, Seeking, at_rest
from tunnelmgr.core.world import World
from tunnelmgr.errors import Pace


def possession_shown(world: World, agent: AgentId, key: str, now: float) -> World:
    """Record that an agent has shown a key in a handshake; it is refused if another agent possesses the key."""
    record = world.records[agent]
    if key in record.possessed:
        return world
    holder = world.key_holders.get(key, agent)
    if holder != agent and key in world.records[holder].possessed and not in_dispute(world, agent, holder, key):
        return refused(world, agent, holder, key, now)
    record = replace(record, possessed=(*record.possessed, key))
    if record.quarantine is not None and record.quarantine.disputed:
        record = replace(record, quarantine=replace(record.quarantine, disputed=(key,), examined=True))
    return world.with_record(record)


def examined(world: World, event: KeyExamined, now: float) -> Transition:
    """Record which key an agent in dispute has shown; if it is not a disputed one, the agent is asked again later."""
    record, status = world.records.get(event.agent), world.tunnels.get(event.agent)
    if record is None or not isinstance(status, Resting | Seeking) or status.phase is not Phase.QUARANTINED:
        return Transition(world)
    status = at_rest(status)
    world = world.with_tunnel(event.agent, status)
    mark = record.quarantine
    if mark is None or not mark.disputed or not record.present or record.agent.incarnation != event.incarnation:
        return Transition(world, {event.agent})
    what = f"showed {fingerprint(event.key)}" if event.key else event.message
    if all((entry.step, entry.detail) != ("examined", what) for entry in record.history):
        record = record.with_step(now, "examined", what)
    world = world.with_record(replace(record, quarantine=replace(mark, examined=True)))
    if event.key in mark.disputed:
        return Transition(possession_shown(world, event.agent, event.key, now), {event.agent})
    failures = status.failures + 1
    later = retry_at(Pace.SLOW, failures, now, event.agent)
    waiting = replace(status, failures=failures, retry_at=later)
    return Transition(world.with_tunnel(event.agent, waiting), {event.agent})
