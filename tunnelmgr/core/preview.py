"""What a reload would do to the agents: the same `evolve` and `plan` as the real one, applied to nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import AgentsDiscovered, Reconfigured
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.reconcile import CloseTunnel, plan
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.world import World


class Effect(StrEnum):
    """What happens to an agent."""

    JOINS = "joins"
    LEAVES = "leaves"
    MOVES = "moves"
    LOSES_EVIDENCE = "loses-evidence"
    REOPENED = "reopened"


@dataclass(frozen=True, slots=True)
class AgentEffect:
    """What happens to one agent; `before` and `after` are its groups, empty for one that joins or leaves."""

    agent: AgentId
    name: str
    effect: Effect
    before: str
    after: str


def effects(world: World, rules: Rules, listings: Iterable[AgentsDiscovered], now: float) -> list[AgentEffect]:
    """Return what a reload with `rules` would do to each agent that it affects, in the order of their ids.

    `listings` are the answers of the sources that are known already. Of an agent with several effects, the one that
    implies the others is returned.
    """
    already = {action.agent for action in plan(world, now) if isinstance(action, CloseTunnel)}
    after = evolve(world, Reconfigured(rules), now)
    for listing in listings:
        after = evolve(after, listing, now)
    closed = {action.agent for action in plan(after, now) if isinstance(action, CloseTunnel)} - already
    found = []
    for id_ in sorted(after.records):
        effect = _effect(world, after, id_, closes=id_ in closed)
        if effect is not None:
            before = world.records[id_].agent.group if effect is not Effect.JOINS else ""
            then = after.records[id_].agent.group if effect is not Effect.LEAVES else ""
            found.append(AgentEffect(id_, after.records[id_].agent.name, effect, before, then))
    return found


def _effect(world: World, after: World, id_: AgentId, *, closes: bool) -> Effect | None:
    before, then = world.records.get(id_), after.records[id_]
    if before is None or not before.present:
        return Effect.JOINS if then.present else None
    if not then.present:
        return Effect.LEAVES
    if then.agent.group != before.agent.group:
        return Effect.MOVES
    if before.trust is not None and then.trust is None:
        return Effect.LOSES_EVIDENCE
    return Effect.REOPENED if closes else None
