"""What becomes of tunnels. A report from an earlier life of a tunnel changes nothing."""

from dataclasses import replace
from typing import assert_never

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.backoff import retry_at
from tunnelmgr.core.events import Failure, TunnelBound, TunnelDialled, TunnelEnded, TunnelProbed
from tunnelmgr.core.evolve.claims import keys_assigned, possession_shown
from tunnelmgr.core.evolve.common import quarantined, respecified, rested
from tunnelmgr.core.trust import PER_LIFE
from tunnelmgr.core.tunnel import Phase, TunnelStatus
from tunnelmgr.core.world import Record, World, resting_status
from tunnelmgr.errors import ListenRefusedError, Pace

SETTLED = 10.0
"""A tunnel that was up for so many seconds starts its retries afresh when it ends."""


def progress(world: World, event: TunnelDialled | TunnelBound | TunnelProbed, now: float) -> World:
    """Take in how far a worker has come."""
    if not _is_current(world, event):
        return world
    record, status = world.records[event.agent], world.tunnels[event.agent]
    match event:
        case TunnelDialled(address=address, login_key=login_key, host_key=host_key):
            world = world.with_record(record.told(now, "dialled", f"{address}, its key is as expected"))
            world = world.with_tunnel(event.agent, replace(status, login_key=login_key or None))
            return possession_shown(world, event.agent, host_key, now) if _is_own(record, status, host_key) else world
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


def ended(world: World, event: TunnelEnded, now: float) -> World:
    """Take in the end of a worker."""
    if not _is_current(world, event):
        return world
    world = _unproved(world, event.agent, now)
    record, status = world.records[event.agent], world.tunnels[event.agent]
    failure = event.failure
    if failure is None or status.revoked or status.phase is Phase.DRAINING:
        world = world.with_record(record.told(now, "closed", failure.message if failure else "as asked"))
        world = world.with_tunnel(event.agent, resting_status(record, now, status.life))
    else:
        world = _failed(world, record, failure, now)
    return rested(world, {event.agent}, now)


def _unproved(world: World, agent: AgentId, now: float) -> World:
    """Drop evidence that is good for one life of a tunnel only; the next life asks for it again."""
    record = world.records[agent]
    if record.trust is None or record.trust.method not in PER_LIFE:
        return world
    world = world.with_record(respecified(replace(record, trust=None), world.rules))
    return keys_assigned(world, now)


def _is_current(world: World, event: TunnelDialled | TunnelBound | TunnelProbed | TunnelEnded) -> bool:
    """Tell whether a report comes from the worker that is at it now; a search for evidence is none."""
    status = world.tunnels.get(event.agent)
    return status is not None and status.working and status.spec is not None and status.life == event.life


def _is_own(record: Record, status: TunnelStatus, key: str) -> bool:
    """Tell whether a key that a worker was shown is one of this incarnation's; it may have been rebuilt meanwhile."""
    lasting = record.present and status.spec is not None and status.spec.incarnation == record.agent.incarnation
    return lasting and record.proved is not None and key in record.proved.keys


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


def _failed(world: World, record: Record, failure: Failure, now: float) -> World:
    id_, status = record.agent.id, world.tunnels[record.agent.id]
    step = "lost" if status.phase is Phase.UP else "failed"
    world = world.with_record(record.told(now, step, failure.message))
    if failure.retry is Pace.NEVER:
        world = quarantined(world, id_, failure, now)
    ended = resting_status(world.records[id_], now, status.life)
    if ended.phase is not Phase.QUARANTINED:
        settled = status.phase is Phase.UP and now - status.since >= SETTLED
        failures = 1 if settled else status.failures + 1
        at = retry_at(failure.retry, failures, now, f"{id_}/{status.life}")
        ended = replace(ended, failures=failures, error=failure.code, message=failure.message, retry_at=at)
    return world.with_tunnel(id_, ended)
