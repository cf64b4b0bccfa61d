"""How each event changes the world. Nothing here acts; `reconcile` derives the actions.

Theory of operation
===================

One event changes the world in two steps. A *transition*, in one of the files below, says what happened: it changes
records, statuses, sources or seeds, and returns the agents that it touched. `settle.py` then derives what depends on
their records: who holds which host key, and in which phase an agent rests. No transition has to remember either.

    event ─▶ transition ─▶ settle ─▶ world       agents.py     configuration, snapshots, a source's event feed
             (world, touched)                    evidence.py   host key evidence found, missing or contradicted
                                                 claims.py     handshakes that show a key
                                                 tunnels.py    reports of workers
                                                 operator.py   retry, release, the end of the process, forgetting
                                                 shared.py     what other members have written

An agent's record says which machine it is and which evidence it has:

    (unknown) ── seen ─▶ present ── left ─▶ remembered ── RetentionExpired ─▶ (forgotten)
                            ▲                   │
                            └─── seen again ────┘

    present:  without evidence ── EvidenceFound ─▶ proved ── TunnelDialled ─▶ proved, possesses its key
                     ▲                               │                                   │
                     └───────────────────────────────┴───────────────────────────────────┘
                        rebuilt (a new incarnation), not accepted by new rules, or, if the
                        method is one of `trust.PER_LIFE`, the end of the tunnel

    any of these ── contradiction, mismatch, shared key ─▶ quarantined ── release ─▶ without evidence

An agent possesses a key until it leaves, is rebuilt or is released.

The status of its tunnel (`core/tunnel.py`) says what is under way. `begin` in `reconcile.py` takes the steps marked *,
when the controller performs a plan; events take all others:

    Resting (awaiting-identity, down or quarantined, as the record says)
       │  ▲
       │* │ evidence found or missing; in a dispute, a key shown or not
       ▼  │
    Seeking

    Resting ──*─▶ Connecting ── TunnelProbed ─▶ Up ──*─▶ Draining ── TunnelEnded ─▶ Resting
                      │  └──────────*───────────────────────▲              ▲
                      └──────── TunnelEnded, from Connecting or Up ────────┘

    A worker that must end at once stays in its state, marked `revoked`, until TunnelEnded.

The process ends in two steps (`world.Stage`):

    running ── StopRequested ─▶ stopping ── DrainRequested ─▶ draining ── the last TunnelEnded ─▶ the loop returns

    stopping:  nothing changes for the agents, and tunnels are opened as before. The supervisor knows the transfers that
               were in progress when the stop was requested, on any tunnel. Once they have ended, or after
               `controller.drain`, the drain is requested.
    draining:  no tunnel is desired, so all of them drain, within what is left of `controller.drain`.

Invariants, most of which `tests/core/test_walks.py` checks on random walks over all events:

- At most one worker or search is under way for an agent. While one is, its status is not `Resting`.
- The phase of a resting agent agrees with its record. An agent that left has a status only until its worker or search
  ends.
- Each key has one holder. No two agents that are present and not quarantined claim the same key.
- No event about one agent closes or blocks the tunnel of another that was dialled with its own key.
- A report from an earlier life of a tunnel, or about an earlier incarnation of an agent, changes nothing, except that
  it ends the search that it answers.
- Evidence belongs to one incarnation. The evidence that proved it remains the minimum: weaker evidence is ignored, and
  evidence of another key quarantines the agent.
- A requested stop changes neither what is desired nor what is done, until the drain. No step leads back.
- Only a release or a decided dispute ends a quarantine; leaving and coming back does not.
- A source that fails removes no agent; a source with a partial answer removes only agents that it reports as ended.
"""

from dataclasses import replace
from typing import assert_never

from tunnelmgr.core.events import (
    AgentEnded,
    AgentQuarantined,
    AgentsDiscovered,
    ClusterChanged,
    DiscoveryFailed,
    DrainRequested,
    Event,
    EvidenceAbsent,
    EvidenceContradicted,
    EvidenceFound,
    FeedClosed,
    FeedReported,
    KeyExamined,
    LoginKeyTested,
    Reconfigured,
    ReleaseRequested,
    RetentionExpired,
    RetryRequested,
    SeedAdded,
    StateShared,
    StopRequested,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import agents, claims, evidence, operator, shared, tunnels
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
        case FeedReported() | FeedClosed():
            return Transition(agents.feed_reported(world, event))
        case EvidenceFound():
            return evidence.found(world, event, now)
        case EvidenceAbsent():
            return evidence.absent(world, event, now)
        case EvidenceContradicted():
            return evidence.contradicted(world, event, now)
        case KeyExamined():
            return claims.examined(world, event, now)
        case TunnelDialled() | TunnelBound() | TunnelProbed() | LoginKeyTested():
            return tunnels.progress(world, event, now)
        case TunnelEnded():
            return tunnels.ended(world, event, now)
        case RetryRequested():
            return Transition(operator.retry(world, event, now))
        case ReleaseRequested():
            return operator.release(world, event, now)
        case SeedAdded(seed):
            return Transition(replace(world, seeds={**world.seeds, seed.id: seed}))
        case StopRequested() | DrainRequested():
            return Transition(operator.stop(world, event))
        case RetentionExpired(before, wall):
            return Transition(operator.forget(world, before, now if wall is None else wall))
        case ClusterChanged() | StateShared() | AgentQuarantined():
            return shared.from_members(world, event, now)
    assert_never(event)
