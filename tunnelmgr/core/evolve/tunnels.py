"""The reports of workers. A report from an earlier life of a tunnel changes nothing."""

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.backoff import retry_at
from tunnelmgr.core.events import LoginKeyTested, TunnelBound, TunnelDialled, TunnelEnded, TunnelProbed
from tunnelmgr.core.evolve.claims import possession_shown
from tunnelmgr.core.evolve.quarantine import quarantined
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.trust import PER_LIFE
from tunnelmgr.core.tunnel import Bindings, Connecting, Draining, Phase, Probe, Resting, Seeking, Up, Working
from tunnelmgr.core.world import Record, World, resting_status
from tunnelmgr.errors import Pace

Progress = TunnelDialled | TunnelBound | TunnelProbed | LoginKeyTested
SETTLED = 10.0
"""A tunnel that was up for this many seconds resets its count of failures when it ends."""


def progress(world: World, event: Progress, now: float) -> Transition:
    """Record the progress of a worker."""
    status = _current(world, event)
    if status is None:
        return Transition(world)
    match event:
        case TunnelDialled():
            return Transition(_dialled(world, event, status, now), {event.agent})
        case TunnelBound():
            return Transition(_bound(world, event, status, now))
        case TunnelProbed():
            return Transition(_probed(world, event, status, now))
        case LoginKeyTested():
            return Transition(_key_tested(world, event, status, now))
    assert_never(event)


def probed_again(world: World, events: Iterable[TunnelProbed], now: float) -> World:
    """Record probes of tunnels that are up, in one step: each step copies a table of the whole fleet."""
    renewed = {
        event.agent: replace(status, probe=Probe(now, event.took * 1000))
        for event in events
        if isinstance(status := _current(world, event), Up)
    }
    return replace(world, tunnels={**world.tunnels, **renewed}) if renewed else world


def ended(world: World, event: TunnelEnded, now: float) -> Transition:
    """Record the end of a worker."""
    status = _current(world, event)
    if status is None:
        return Transition(world)
    world = _without_spent_evidence(world, event.agent)
    record, failure = world.records[event.agent], event.failure
    if failure is None or status.revoked or isinstance(status, Draining):
        world = world.with_record(record.with_step(now, "closed", failure.message if failure else "on request"))
        world = world.with_tunnel(event.agent, resting_status(record, now, status.life))
    else:
        world = _failed(world, record, status, failure, now)
    return Transition(world, {event.agent})


def _without_spent_evidence(world: World, agent: AgentId) -> World:
    """Drop evidence that is valid for one life of a tunnel only; the next life needs it again."""
    record = world.records[agent]
    if record.trust is None or record.trust.method not in PER_LIFE:
        return world
    return world.with_record(replace(record, trust=None))


def _current(world: World, event: Progress | TunnelEnded) -> Working | None:
    """Return the status of the worker that reports; None if it is not the agent's current one."""
    status = world.tunnels.get(event.agent)
    if status is None or isinstance(status, Resting | Seeking) or status.life != event.life:
        return None
    return status


def _dialled(world: World, event: TunnelDialled, status: Working, now: float) -> World:
    record = world.records[event.agent]
    world = world.with_record(record.with_step(now, "dialled", f"{event.address}, host key verified"))
    world = world.with_tunnel(event.agent, replace(status, login_key=event.login_key or None))
    return (
        possession_shown(world, event.agent, event.host_key, now) if _is_own(record, status, event.host_key) else world
    )


def _is_own(record: Record, status: Working, key: str) -> bool:
    """Return whether a key that a worker was shown is one of this incarnation's; it may have been rebuilt meanwhile."""
    lasting = record.present and status.spec.incarnation == record.agent.incarnation
    return lasting and record.proved is not None and key in record.proved.keys


def _bound(world: World, event: TunnelBound, status: Working, now: float) -> World:
    bindings = Bindings(event.held, event.refused, event.conflicts)
    if bindings == status.bindings:
        return world
    detail = ", ".join(map(str, event.held))
    if event.refused:
        detail += f"; refused: {', '.join(map(str, event.refused))}"
    if event.conflicts:
        detail += " (another process on the agent uses it)"
    world = world.with_record(world.records[event.agent].with_step(now, "bound", detail))
    return world.with_tunnel(event.agent, replace(status, bindings=bindings))


def _key_tested(world: World, event: LoginKeyTested, status: Working, now: float) -> World:
    record = replace(world.records[event.agent], excess=event.excess)
    if event.excess:
        record = record.with_step(now, "key-too-powerful", f"it could also {', '.join(event.excess)}")
    world = world.with_record(record)
    return world.with_tunnel(event.agent, replace(status, excess=event.excess)) if isinstance(status, Up) else world


def _probed(world: World, event: TunnelProbed, status: Working, now: float) -> World:
    probe = Probe(now, event.took * 1000)
    if not isinstance(status, Connecting):
        return world.with_tunnel(event.agent, replace(status, probe=probe))
    record = world.records[event.agent]
    world = world.with_record(record.with_step(now, "probed", f"up, round trip {probe.ms:.1f} ms"))
    up = Up(
        since=now,
        life=status.life,
        spec=status.spec,
        probe=probe,
        failures=status.failures,
        login_key=status.login_key,
        bindings=status.bindings,
        revoked=status.revoked,
        excess=record.excess or (),
    )
    return world.with_tunnel(event.agent, up)


def _failed(world: World, record: Record, status: Working, failure: Failure, now: float) -> World:
    id_ = record.agent.id
    step = "lost" if isinstance(status, Up) else "failed"
    world = world.with_record(record.with_step(now, step, failure.message))
    if failure.retry is Pace.NEVER:
        world = quarantined(world, id_, failure, now)
    ended = resting_status(world.records[id_], now, status.life)
    if ended.phase is not Phase.QUARANTINED:
        settled = isinstance(status, Up) and now - status.since >= SETTLED
        failures = 1 if settled else status.failures + 1
        at = retry_at(failure.retry, failures, now, f"{id_}/{status.life}")
        ended = replace(ended, failures=failures, error=failure.code, message=failure.message, retry_at=at)
    return world.with_tunnel(id_, ended)
