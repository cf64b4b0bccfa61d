"""Several controllers: which member holds which agent and which source, and how a lease passes to another member.

    (no lease) ── CLAIM ─▶ held ── OFFER ─▶ offered ── READY ─▶ ready ── TAKE ─▶ held by the successor, next term
        ▲                   │ ▲               │                   │
        └──── RELEASE ──────┤ └───────────────┴───── CANCEL ──────┘
                            └── the holder is dead: CLAIM ─▶ held by another member, next term

A lease says who should hold an agent. A planned handover leaves no gap: the successor logs in to the agent first
(READY); then the holder stops listening and lets its transfers finish; then the successor, which keeps asking for the
port, listens (TAKE). Every change names the term that its member has seen, and a change for an earlier term is refused.

A holder that cannot reach an agent offers it to another member, whose network may be intact. If the successor cannot
log in either, it cancels, and the lease stays where it is.

`changed` is the whole rule. The database applies it to locked rows, and the tests apply it to a model of the database.

Unassigned agents are spread by weighted rendezvous hashing (D. Thaler and C. Ravishankar, 1998; the weights as in
"Weighted distributed hash tables", C. Schindelhauer and G. Schomaker, 2005): if a member comes or goes, only its own
share moves. A lease that stands is not moved for the sake of balance: agents live for minutes, and a handover has a
cost. Members in the agent's zone come first.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Final, Literal, NamedTuple, assert_never

NOBODY: Final = ""
"""The holder of a released lease. It is kept for a while, so that its term keeps rising and all members learn of it."""
LEASE_SECONDS: Final = 10.0
"""Seconds without a heartbeat after which a member is dead, and its leases may be claimed."""
MAX_OFFERS: Final = 8
"""Offers of one holder that are under way at a time: their successors ask for the agents' ports in short intervals."""
DRAWS_KEPT: Final = 32768
"""Draws that are kept: a rebalance of thousands of agents needs each of them in every turn."""
Kind = Literal["agent", "source"]
"""What a lease is about."""


@dataclass(frozen=True, slots=True)
class Member:
    """One controller of a cluster; `seen` is the age of its last heartbeat in seconds, by the database's clock.

    `rules` is a digest of the configuration that all members must agree on. `to_drain` says that an operator wants it
    to hand its agents over.
    """

    name: str
    zone: str = ""
    capacity: float = 1.0
    version: str = ""
    rules: str = ""
    draining: bool = False
    to_drain: bool = False
    alive: bool = True
    seen: float = 0.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A member's claim. `term` rises with each holder; `previous` held it before.

    `successor` is to take it over, and is `ready` once it has logged in to the agent.
    """

    holder: str
    term: int
    successor: str | None = None
    ready: bool = False
    previous: str | None = None


class Step(StrEnum):
    """How a lease changes."""

    CLAIM = "claim"  # a lease without a holder, or whose holder is dead
    RELEASE = "release"  # by the holder: what it is about has been forgotten
    OFFER = "offer"  # name a successor
    READY = "ready"  # the successor has logged in
    TAKE = "take"  # the successor listens
    CANCEL = "cancel"  # by the holder or the successor: there is no longer a successor


class LeaseChange(NamedTuple):
    """A change that `member` requests; `term` is that of the lease that it has seen, 0 if it has seen none."""

    kind: Kind
    id: str
    step: Step
    member: str
    term: int
    successor: str = ""


class Progress(StrEnum):
    """How far this member is with an agent that it is to take over."""

    NONE = "none"
    LOGGED_IN = "logged-in"
    LISTENING = "listening"
    FAILED = "failed"


def changed(lease: Lease | None, change: LeaseChange, living: AbstractSet[str]) -> Lease | None:
    """Return the lease after a change, None if the change is refused; `living` are the members that are alive."""
    if lease is None or lease.holder == NOBODY:
        term = 1 if lease is None else lease.term + 1
        return Lease(change.member, term) if (change.step, change.term) == (Step.CLAIM, 0) else None
    if lease.term != change.term or not _is_allowed(lease, change, living):
        return None
    return _after(lease, change)


def _after(lease: Lease, change: LeaseChange) -> Lease:
    match change.step:
        case Step.RELEASE:
            return Lease(NOBODY, lease.term)
        case Step.OFFER:
            return replace(lease, successor=change.successor)
        case Step.READY:
            return replace(lease, ready=True)
        case Step.CANCEL:
            return replace(lease, successor=None, ready=False)
        case Step.CLAIM | Step.TAKE:
            return Lease(change.member, lease.term + 1, previous=lease.holder)
    assert_never(change.step)


def _is_allowed(lease: Lease, change: LeaseChange, living: AbstractSet[str]) -> bool:
    match change.step:
        case Step.CLAIM:
            return lease.holder not in living
        case Step.RELEASE:
            return lease.holder == change.member
        case Step.OFFER:
            return lease.successor is None and change.successor in living and change.successor != lease.holder
        case Step.READY | Step.TAKE:
            return lease.successor == change.member
        case Step.CANCEL:
            return lease.successor is not None and change.member in {lease.holder, lease.successor}
    assert_never(change.step)


def best_member(id_: str, zone: str, members: Sequence[Member]) -> str | None:
    """Return the member that should hold a lease without a holder; None if there is no member.

    Members in `zone` come first; an empty zone matches none.
    """
    near = [member for member in members if member.zone == zone] if zone else []
    return max(near or members, key=lambda member: (_score(id_, member), member.name), default=_NOBODY).name or None


def _score(id_: str, member: Member) -> float:
    """Return a member's score: it wins in proportion to its capacity."""
    return -member.capacity / _log_of_draw(member.name, id_)


@lru_cache(DRAWS_KEPT)
def _log_of_draw(name: str, id_: str) -> float:
    digest = blake2b(f"{name}\0{id_}".encode(), digest_size=8).digest()
    return math.log((int.from_bytes(digest) + 0.5) / 2**64)


_NOBODY = Member("")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one member decides by: the members, the leases of one kind, and what is to be held, each with its zone."""

    kind: Kind
    me: str
    members: Mapping[str, Member]
    leases: Mapping[str, Lease]
    wanted: Mapping[str, str]
    progress: Mapping[str, Progress]
    """Of those that are offered to this member; one that is missing has nothing to wait for."""
    forgotten: AbstractSet[str] = frozenset()
    """What this member still has leases of, but no longer knows."""
    unreachable: Mapping[str, int] = field(default_factory=dict)
    """The agents that this member cannot reach and another may, each with the number of offers before."""
    unsettled: AbstractSet[str] = frozenset()
    """The agents whose holders are still connecting to them, which a rebalance leaves alone."""

    def changes(self) -> Iterator[LeaseChange]:
        """Yield the changes that this member should request now."""
        able = self._able()
        for id_ in self.wanted:
            if id_ not in self.leases and best_member(id_, self.wanted[id_], able) == self.me:
                yield self._change(id_, Step.CLAIM, 0)
        offers = self._room_for_offers(self.me)
        for id_, lease in self._not_at_rest():
            change = self._next(id_, lease, able)
            if change is not None and change.step is Step.OFFER:
                offers -= 1
            if change is not None and (change.step is not Step.OFFER or offers >= 0):
                yield change

    def _not_at_rest(self) -> Iterator[tuple[str, Lease]]:
        """Yield the leases about which this member may have to do something: few of thousands in most turns."""
        living = {name for name, member in self.members.items() if member.alive}
        mine = self.members[self.me].draining or bool(self.forgotten) or bool(self.unreachable)
        for id_, lease in self.leases.items():
            if lease.successor is not None or lease.holder not in living or (mine and lease.holder == self.me):
                yield id_, lease

    def _next(self, id_: str, lease: Lease, able: list[Member]) -> LeaseChange | None:
        if not self._is_alive(lease.holder):
            if self._heir(id_, lease, able) == self.me:
                return self._change(id_, Step.CLAIM, lease.term)
        elif lease.successor == self.me:
            return self._as_successor(id_, lease)
        elif lease.holder == self.me:
            return self._as_holder(id_, lease, able)
        return None

    def _heir(self, id_: str, lease: Lease, able: list[Member]) -> str | None:
        """Return who should hold the lease of a dead member: its successor, who may have logged in already."""
        if lease.successor is not None and any(member.name == lease.successor for member in able):
            return lease.successor
        return best_member(id_, self.wanted.get(id_, ""), able)

    def _as_successor(self, id_: str, lease: Lease) -> LeaseChange | None:
        match self.progress.get(id_, Progress.LISTENING):
            case Progress.LISTENING:
                return self._change(id_, Step.TAKE, lease.term)
            case Progress.LOGGED_IN if not lease.ready:
                return self._change(id_, Step.READY, lease.term)
            case Progress.FAILED:
                return self._change(id_, Step.CANCEL, lease.term)
            case _:
                return None

    def _as_holder(self, id_: str, lease: Lease, able: list[Member]) -> LeaseChange | None:
        if id_ in self.forgotten:
            return self._change(id_, Step.RELEASE, lease.term)
        if lease.successor is not None:
            return None if self._is_alive(lease.successor) else self._change(id_, Step.CANCEL, lease.term)
        successor = None
        if self.members[self.me].draining:
            successor = best_member(id_, self.wanted.get(id_, ""), able)
        elif id_ in self.unreachable:  # by all others in turn, also those in other zones
            others = [member for member in able if member.name != self.me]
            successor = best_member(f"{id_}/{self.unreachable[id_]}", "", others)
        return None if successor is None else self._change(id_, Step.OFFER, lease.term, successor)

    def rebalanced(self) -> Iterator[LeaseChange]:
        """Yield offers that move leases to the members that would get them if nobody held them.

        They are as many as may be under way at a time; none means that all are where they should be.
        """
        able = self._able()
        room = {name: self._room_for_offers(name) for name in self.members}
        for id_, lease in self._movable():
            best = best_member(id_, self.wanted.get(id_, ""), able)
            if best is None or best == lease.holder or lease.successor is not None or not self._is_alive(lease.holder):
                continue
            room[lease.holder] -= 1
            if room[lease.holder] >= 0:
                yield self._change(id_, Step.OFFER, lease.term, best)

    def misplaced(self) -> int:
        """Return how many leases a rebalance would move."""
        able = self._able()
        return sum(
            best_member(id_, self.wanted.get(id_, ""), able) != (lease.successor or lease.holder)
            for id_, lease in self._movable()
        )

    def _movable(self) -> Iterator[tuple[str, Lease]]:
        return ((id_, lease) for id_, lease in self.leases.items() if id_ not in self.unsettled)

    def _able(self) -> list[Member]:
        """Return the members that may take leases."""
        return [member for member in self.members.values() if member.alive and not member.draining]

    def _room_for_offers(self, holder: str) -> int:
        under_way = sum(lease.holder == holder and lease.successor is not None for lease in self.leases.values())
        return MAX_OFFERS - under_way

    def _is_alive(self, name: str) -> bool:
        member = self.members.get(name)
        return member is not None and member.alive

    def _change(self, id_: str, step: Step, term: int, successor: str = "") -> LeaseChange:
        return LeaseChange(self.kind, id_, step, self.me, term, successor)
