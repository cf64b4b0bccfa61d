"""Putting agents into quarantine, which only an operator's release or a decided dispute ends."""

from dataclasses import replace

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.host_key import fingerprint
from tunnelmgr.core.world import Quarantine, World
from tunnelmgr.errors import HostKeySharedError, Pace, release_command


def quarantined(world: World, agent: AgentId, failure: Failure, now: float) -> World:
    """Refuse an agent until an operator releases it; an agent that is already refused keeps its first reason."""
    record = world.records[agent]
    if record.quarantine is not None:
        return world
    mark = Quarantine(since=now, code=failure.code, message=failure.message)
    return world.with_record(replace(record, quarantine=mark).with_step(now, "quarantined", failure.message))


def refused(world: World, agent: AgentId, holder: AgentId, key: str, now: float) -> World:
    """Quarantine an agent that claims the key of another; if it was in dispute, that ends for it."""
    message = (
        f"{agent} claims the host key of {holder} ({fingerprint(key)}), and {holder} "
        f"{_better_claim(world, agent, holder, key)}. Investigate {agent}, then run: {release_command(agent)}"
    )
    return left_to_operator(world, agent, message, now)


def _better_claim(world: World, agent: AgentId, holder: AgentId, key: str) -> str:
    if key in world.records[holder].possessed:
        return "has shown it in a handshake"
    theirs, ours = world.records[holder].proved, world.records[agent].proved
    methods = f": {theirs.method}, not {ours.method}" if theirs and ours else ""
    return f"has stronger evidence for it{methods}"


def left_to_operator(world: World, agent: AgentId, message: str, now: float) -> World:
    """Quarantine an agent for a shared key, with no handshake that may still free it."""
    record = world.records[agent]
    if record.quarantine is None:
        return quarantined(world, agent, Failure(HostKeySharedError.code, Pace.NEVER, message), now)
    if not record.quarantine.disputed:
        return world
    mark = replace(record.quarantine, message=message, disputed=())
    return world.with_record(replace(record, quarantine=mark).with_step(now, "refused", message))
