"""The difference between desired and observed tunnels, as actions; a pure function of the whole world.

Shutdown, scale-in, a changed forward and a terminated instance are one path: each shrinks `desired()`, and `plan`
closes the difference.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from heapq import nsmallest
from operator import itemgetter
from typing import NamedTuple, assert_never, cast

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.precedence import Precedence, precedence
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import (
    Connecting,
    Draining,
    Phase,
    Resting,
    Seeking,
    TunnelSpec,
    TunnelStatus,
    Working,
    drained,
)
from tunnelmgr.core.world import Record, World


class Manner(Enum):
    """How to close a tunnel."""

    DRAIN = auto()  # stop listening, and let transfers finish until a deadline
    REVOKE = auto()  # abort the connection and every socket behind it, now


class CloseTunnel(NamedTuple):
    """End the worker of this agent."""

    agent: AgentId
    life: int
    manner: Manner


class OpenTunnel(NamedTuple):
    """Start a worker, which opens one tunnel and ends with it.

    `rival` is the other member of a cluster that may still listen on the agent, "" if there is none. `tests_key` says
    whether to try what the login key could do there.
    """

    agent: AgentId
    life: int
    spec: TunnelSpec
    precedence: Precedence
    rival: str = ""
    tests_key: bool = False


class SeekEvidence(NamedTuple):
    """Search for the host keys to expect, by methods that are at least as strong as `at_least`."""

    agent: Agent
    at_least: Method | None = None


class ExamineKey(NamedTuple):
    """Ask an agent to show one of the disputed keys, without offering a login."""

    agent: Agent
    keys: tuple[str, ...]


Search = SeekEvidence | ExamineKey
Action = CloseTunnel | OpenTunnel | Search


class Due(NamedTuple):
    """An agent for which a dial or a search may begin, and its place in the order."""

    precedence: Precedence
    record: Record
    status: Resting | None

    @property
    def is_dial(self) -> bool:
        """Return whether it is a dial; otherwise it is a search."""
        return self.record.quarantine is None and self.record.trust is not None


Admit = Callable[[list[Due]], Sequence[Due]]
"""Chooses what to begin now, in the order in which to begin it."""


def in_order(due: list[Due]) -> Sequence[Due]:
    """Choose all that is due."""
    return sorted(due, key=itemgetter(0))


def first_in_order(count: int, due: list[Due]) -> Sequence[Due]:
    """Choose the first `count`."""
    return nsmallest(count, due, key=itemgetter(0))


def desired(world: World) -> Mapping[AgentId, TunnelSpec]:
    """Return the tunnels that should exist: one for each agent that is present, proved and not in quarantine."""
    wanted = ((id_, _desired(world, record)) for id_, record in world.records.items())
    return {id_: spec for id_, spec in wanted if spec is not None}


def _desired(world: World, record: Record) -> TunnelSpec | None:
    if record.trust is None or not record.present or record.quarantine is not None or world.draining:
        return None
    if world.cluster is not None and not world.cluster.serves(record.agent.id):
        return None
    return _spec(record, record.trust, world.rules) if record.agent.addresses else None


def _spec(record: Record, trust: HostTrust, rules: Rules) -> TunnelSpec:
    agent = record.agent
    return TunnelSpec(
        agent.id,
        agent.incarnation,
        agent.name,
        agent.group,
        agent.addresses,
        agent.port,
        rules.forwards,
        trust,
        agent.group in rules.restricted,
    )


def _is_as_desired(world: World, record: Record, spec: TunnelSpec) -> bool:
    """Return whether `_desired` would return `spec`; `plan` asks this for every tunnel, so it builds no spec."""
    agent = record.agent
    return (
        record.present
        and record.quarantine is None
        and not world.draining
        and (world.cluster is None or world.cluster.serves(agent.id))
        and spec
        == (
            agent.id,
            agent.incarnation,
            agent.name,
            agent.group,
            agent.addresses,
            agent.port,
            world.rules.forwards,
            record.trust,
            agent.group in world.rules.restricted,
        )
    )


def plan(world: World, now: float, admit: Admit = in_order) -> tuple[Action, ...]:
    """Return what closes the difference between desired and observed at `now`: closings, then what `admit` chooses."""
    closings: list[Action] = []
    due: list[Due] = []
    may_begin = not world.draining
    for id_, record in world.records.items():
        status = world.tunnels.get(id_)
        if status is None or isinstance(status, Resting):
            if may_begin and _is_due(world, record, status, now):
                due.append(Due(precedence(record, status), record, status))
        elif not isinstance(status, Seeking) and not _is_as_desired(world, record, status.spec):
            closing = _closing(record, status)
            if closing is not None:
                closings.append(closing)
    # Closings first: an agent that moved still holds the port there.
    return (*closings, *(_opening(world, one) for one in admit(due)))


def _closing(record: Record, status: Working) -> CloseTunnel | None:
    if status.revoked:
        return None
    # If the group has changed, it may allow less: transfers under the old one must not continue.
    may_drain = (
        record.present
        and record.quarantine is None
        and record.trust is not None
        and record.trust.keys == status.spec.trust.keys
        and record.agent.incarnation == status.spec.incarnation
        and record.agent.group == status.spec.group
    )
    if not may_drain:
        return CloseTunnel(record.agent.id, status.life, Manner.REVOKE)
    if isinstance(status, Draining):
        return None
    return CloseTunnel(record.agent.id, status.life, Manner.DRAIN)


def _is_due(world: World, record: Record, status: Resting | None, now: float) -> bool:
    """Return whether a tunnel is to be opened, or evidence to be sought, at `now`; not for a world that is draining."""
    if status is not None and status.retry_at is not None and status.retry_at > now:
        return False
    if not record.present:
        return False
    if world.cluster is not None and not world.cluster.may_begin(record.agent.id, now):
        return False
    if record.quarantine is not None:
        return bool(record.quarantine.disputed) and not record.possessed
    if record.trust is None:
        return not record.agent.rebuilding
    return bool(record.agent.addresses)


def _opening(world: World, due: Due) -> Action:
    order, record, status = due
    if record.quarantine is not None:
        return ExamineKey(record.agent, record.quarantine.disputed)
    if record.trust is None:
        return SeekEvidence(record.agent, record.proved.method if record.proved else None)
    spec = _spec(record, record.trust, world.rules)
    rival = world.cluster.other(record.agent.id) if world.cluster is not None else None
    life = (status.life if status else 0) + 1
    return OpenTunnel(record.agent.id, life, spec, order, rival or "", record.excess is None or spec.restricted)


def begin(world: World, actions: Iterable[Action], now: float) -> World:
    """Return the world in which `actions` are under way."""
    tunnels = dict(world.tunnels)
    for action in actions:
        match action:
            case CloseTunnel(agent, _, manner):
                tunnels[agent] = _closed(cast("Working", tunnels[agent]), manner, now)  # `plan` closes only workers
            case OpenTunnel(agent, life, spec):
                before = world.status(agent)
                tunnels[agent] = Connecting(now, life, spec, before.failures, before.error, before.message)
            case SeekEvidence(agent):
                resting = tunnels.get(agent.id) or Resting(Phase.AWAITING_IDENTITY, now)
                tunnels[agent.id] = Seeking(cast("Resting", resting))  # `plan` seeks only for agents that rest
            case ExamineKey(agent):
                tunnels[agent.id] = Seeking(cast("Resting", world.status(agent.id)))
            case _:
                assert_never(action)
    return replace(world, tunnels=tunnels)


def _closed(status: Working, manner: Manner, now: float) -> Working:
    """Return the status of a worker that was asked to end."""
    return drained(status, now) if manner is Manner.DRAIN else replace(status, revoked=True)


def next_due(world: World) -> float | None:
    """Return the earliest time at which `plan` may have something new to do without an event; None if never."""
    if world.draining:
        return None
    times = (_due(world, id_, status) for id_, status in world.tunnels.items())
    return min((at for at in times if at is not None), default=None)


def _due(world: World, id_: AgentId, status: TunnelStatus) -> float | None:
    """Return when `plan` starts something for this agent without an event; None if it never does."""
    if not isinstance(status, Resting) or status.retry_at is None:
        return None
    record = world.records[id_]
    return status.retry_at if _is_due(world, record, status, status.retry_at) else None
