"""How each event changes the world. Nothing here acts; `reconcile` reads off what is to be done."""

from dataclasses import replace
from typing import assert_never

from tunnelmgr.core.events import (
    AgentEnded,
    AgentsDiscovered,
    DiscoveryFailed,
    DrainRequested,
    Event,
    EvidenceAbsent,
    EvidenceContradicted,
    EvidenceFound,
    FeedClosed,
    FeedHeard,
    KeyExamined,
    MemoryExpired,
    Reconfigured,
    ReleaseRequested,
    RetryRequested,
    SeedAdded,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import agents, claims, evidence, operator, tunnels
from tunnelmgr.core.evolve.settle import settle
from tunnelmgr.core.evolve.transition import Transition
from tunnelmgr.core.world import World


def evolve(world: World, event: Event, now: float) -> World:
    """Return the world after `event`."""
    after, touched = _transition(world, event, now)
    return settle(world, after, touched, now)


def _transition(world: World, event: Event, now: float) -> Transition:  # noqa: C901, PLR0911, PLR0912 - one arm an event
    match event:
        case Reconfigured(rules):
            return agents.reconfigured(world, rules, now)
        case AgentsDiscovered():
            return agents.discovered(world, event, now)
        case DiscoveryFailed():
            return Transition(agents.discovery_failed(world, event))
        case AgentEnded():
            return agents.agent_ended(world, event, now)
        case FeedHeard():
            return Transition(agents.feed_heard(world, event.source, ok=event.error is None, error=event.error))
        case FeedClosed(source):
            return Transition(agents.feed_heard(world, source, ok=None, error=None))
        case EvidenceFound():
            return evidence.found(world, event, now)
        case EvidenceAbsent():
            return evidence.absent(world, event, now)
        case EvidenceContradicted():
            return evidence.contradicted(world, event, now)
        case KeyExamined():
            return claims.examined(world, event, now)
        case TunnelDialled() | TunnelBound() | TunnelProbed():
            return tunnels.progress(world, event, now)
        case TunnelEnded():
            return tunnels.ended(world, event, now)
        case RetryRequested():
            return Transition(operator.retry(world, event, now))
        case ReleaseRequested():
            return operator.release(world, event, now)
        case SeedAdded(seed):
            return Transition(replace(world, seeds={**world.seeds, seed.id: seed}))
        case DrainRequested():
            return Transition(replace(world, draining=True))
        case MemoryExpired(before, wall):
            return Transition(operator.forget(world, before, now if wall is None else wall))
    assert_never(event)
