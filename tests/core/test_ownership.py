"""Leases: who claims what, how they pass to another member, and how several members use them together."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelmgr.core.ownership import (
    MAX_OFFERS,
    NOBODY,
    Holdings,
    Lease,
    LeaseChange,
    Member,
    Progress,
    Step,
    best_member,
    changed,
)

NAMES = ("a", "b", "c")
AGENTS = tuple(f"agent-{number}" for number in range(12))


def members(*names: str) -> list[Member]:
    """Return members of one zone."""
    return [Member(name) for name in names]


def change(step: Step, member: str = "b", term: int = 1, successor: str = "") -> LeaseChange:
    """Return a change about one agent."""
    return LeaseChange("agent", "x", step, member, term, successor)


HELD, OFFERED = Lease("a", 1), Lease("a", 1, successor="b")


@pytest.mark.parametrize(
    ("lease", "wanted", "after"),
    [
        (None, change(Step.CLAIM, term=0), Lease("b", 1)),
        (None, change(Step.CLAIM), None),
        (None, change(Step.TAKE, term=0), None),
        (HELD, change(Step.CLAIM), None),
        (Lease("dead", 4), change(Step.CLAIM, term=4), Lease("b", 5, previous="dead")),
        (Lease("dead", 4), change(Step.CLAIM, term=3), None),
        (HELD, change(Step.OFFER, "a", successor="b"), OFFERED),
        (HELD, change(Step.OFFER, "a", successor="a"), None),
        (HELD, change(Step.OFFER, "a", successor="dead"), None),
        (OFFERED, change(Step.OFFER, "a", successor="c"), None),
        (OFFERED, change(Step.READY), replace(OFFERED, ready=True)),
        (OFFERED, change(Step.READY, "c"), None),
        (HELD, change(Step.READY), None),
        (replace(OFFERED, ready=True), change(Step.TAKE), Lease("b", 2, previous="a")),
        (OFFERED, change(Step.TAKE, "c"), None),
        (OFFERED, change(Step.CANCEL, "a"), HELD),
        (OFFERED, change(Step.CANCEL, "b"), HELD),
        (OFFERED, change(Step.CANCEL, "c"), None),
        (HELD, change(Step.CANCEL, "a"), None),
        (HELD, change(Step.RELEASE, "a"), Lease(NOBODY, 1)),
        (OFFERED, change(Step.RELEASE, "a"), Lease(NOBODY, 1)),
        (HELD, change(Step.RELEASE, "b"), None),
        (Lease(NOBODY, 1), change(Step.CLAIM, term=0), Lease("b", 2)),
        (Lease(NOBODY, 1), change(Step.CLAIM, term=1), None),
        (Lease(NOBODY, 1), change(Step.RELEASE, NOBODY), None),
    ],
)
def test_a_change_is_accepted_only_in_its_place(lease: Lease | None, wanted: LeaseChange, after: Lease | None) -> None:
    """A change for an earlier term, or one that the lease's state does not allow, is refused."""
    assert changed(lease, wanted, {"a", "b", "c"}) == after


def test_agents_are_spread_by_capacity() -> None:
    """A member with twice the capacity gets about twice as many agents."""
    able = [Member("a"), Member("b"), Member("big", capacity=2.0)]

    counts = Counter(best_member(f"agent-{number}", "", able) for number in range(4000))

    assert counts["a"] == pytest.approx(1000, rel=0.15)
    assert counts["big"] == pytest.approx(2000, rel=0.15)


def test_a_member_that_leaves_moves_only_its_own_agents() -> None:
    """The agents of the members that stay are assigned as before."""
    before = {agent: best_member(agent, "", members("a", "b", "c")) for agent in map(str, range(500))}
    after = {agent: best_member(agent, "", members("a", "b")) for agent in map(str, range(500))}

    assert all(after[agent] == name for agent, name in before.items() if name != "c")


def test_members_in_the_agents_zone_come_first() -> None:
    """Another zone's member gets an agent only if the agent's own zone has none."""
    east, west = Member("east", zone="eu-1"), Member("west", zone="eu-2")

    assert {best_member(str(number), "eu-1", [east, west]) for number in range(50)} == {"east"}
    assert best_member("x", "eu-1", [west]) == "west"
    assert best_member("x", "", []) is None


@dataclass
class ModelDatabase:
    """The leases and members as a database would keep them, and who has written under which term."""

    leases: dict[str, Lease] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=lambda: {name: Member(name) for name in NAMES})

    def living(self) -> set[str]:
        """Return the members that are alive."""
        return {name for name, member in self.members.items() if member.alive}

    def apply(self, wanted: LeaseChange) -> bool:
        """Apply a change; return whether it was accepted."""
        before = self.leases.get(wanted.id)
        after = changed(before, wanted, self.living())
        if after is None:
            return False
        assert before is None or after.term >= before.term, "a term never falls"
        kept = before is None or after.holder in {before.holder, NOBODY}
        assert before is None or kept == (after.term == before.term), "a term, a holder"
        self.leases[wanted.id] = after
        return True

    def held(self) -> dict[str, Lease]:
        """Return the leases that somebody holds, as members see them."""
        return {agent: lease for agent, lease in self.leases.items() if lease.holder != NOBODY}

    def may_write(self, member: str, agent: str, term: int) -> bool:
        """Return whether a write about an agent is accepted."""
        lease = self.leases.get(agent)
        return lease is not None and (lease.holder, lease.term) == (member, term)


@dataclass
class ModelMember:
    """A member that decides by a view of the database which may be old."""

    name: str
    database: ModelDatabase
    dice: random.Random
    leases: dict[str, Lease] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    forgotten: frozenset[str] = frozenset()

    def look(self) -> None:
        """Read the database."""
        self.leases, self.members = self.database.held(), dict(self.database.members)

    def act(self) -> int:
        """Request what follows from the view; return how many changes were accepted."""
        if self.name not in self.members:
            return 0
        progress = {agent: self.dice.choice(list(Progress)) for agent in AGENTS}
        self.forgotten = frozenset(self.dice.sample(AGENTS, self.dice.randrange(3)))
        unreachable = {agent: self.dice.randrange(4) for agent in self.dice.sample(AGENTS, 2)}
        return self.request(progress, unreachable)

    def request(self, progress: dict[str, Progress], unreachable: dict[str, int] | None = None) -> int:
        """Request what follows from the view and the progress with the agents."""
        wanted = {agent: "" for agent in AGENTS if agent not in self.forgotten}
        view, leases = self.members, self.leases
        holdings = Holdings("agent", self.name, view, leases, wanted, progress, self.forgotten, unreachable or {})
        return sum(self.database.apply(wanted) for wanted in holdings.changes())


@pytest.mark.parametrize("seed", range(60))
def test_members_with_old_views_end_with_one_holder_for_each_agent(seed: int) -> None:
    """Members act on old views, die and come back; once they read and nothing fails, every lease stands and stays."""
    dice = random.Random(seed)  # noqa: S311 - reproducible walks
    database = ModelDatabase()
    crew = [ModelMember(name, database, dice) for name in NAMES]
    written: dict[tuple[str, int], str] = {}
    for _ in range(400):
        one = dice.choice(crew)
        match dice.randrange(8):
            case 0:
                state = database.members[one.name]
                database.members[one.name] = replace(state, alive=not state.alive)
            case 1:
                state = database.members[one.name]
                database.members[one.name] = replace(state, draining=not state.draining)
            case 2 | 3:
                one.look()
            case _:
                one.act()
        for agent, lease in one.leases.items():
            if database.may_write(one.name, agent, lease.term):
                assert written.setdefault((agent, lease.term), one.name) == one.name, "two wrote under one term"
    check_that_all_ends_well(database, crew)


def check_that_all_ends_well(database: ModelDatabase, crew: list[ModelMember]) -> None:
    """Check that every lease has a holder and stays where it is, once all members live and have read the database."""
    database.members = {name: Member(name) for name in NAMES}
    for one in crew:
        one.forgotten = frozenset()
    for _ in range(6):
        for one in crew:
            one.look()
            one.request({})

    assert set(database.leases) == set(AGENTS)
    assert all(lease.successor is None for lease in database.leases.values())
    stable = dict(database.leases)
    for one in crew:
        one.look()
        assert one.request({}) == 0, "nothing flaps"
    assert database.leases == stable


@given(st.integers(0, 2), st.integers(0, 2**32))
def test_a_draining_member_hands_everything_over(drained: int, seed: int) -> None:
    """A draining member offers all of its leases; each passes once its successor has logged in and listens."""
    dice = random.Random(seed)  # noqa: S311 - reproducible walks
    database = ModelDatabase()
    crew = [ModelMember(name, database, dice) for name in NAMES]
    for _ in range(2):
        for one in crew:
            one.look()
            one.request({})
    leaving = NAMES[drained]
    database.members[leaving] = replace(database.members[leaving], draining=True)
    waiting: dict[str, Progress] = dict.fromkeys(AGENTS, Progress.LOGGED_IN)

    for progress in (waiting, waiting, waiting):
        for one in crew:
            one.look()
            one.request(progress)
    assert all(lease.ready for lease in database.leases.values() if lease.holder == leaving)
    for one in crew:
        one.look()
        one.request({})

    assert leaving not in {lease.holder for lease in database.leases.values()}


def test_a_rebalance_offers_what_another_member_should_hold() -> None:
    """A member that has come back gets its share by offers of the leases that stand, a few at a time."""
    leases = {agent: Lease("a", 1) for agent in AGENTS}
    view = {name: Member(name) for name in NAMES}
    holdings = Holdings("agent", "a", view, leases, dict.fromkeys(AGENTS, ""), {})

    offers = list(holdings.rebalanced())

    better = {(agent, best) for agent in AGENTS if (best := best_member(agent, "", view.values())) != "a"}
    assert {(offer.id, offer.successor) for offer in offers} < better
    assert (len(offers), holdings.misplaced()) == (MAX_OFFERS, len(better))
    assert list(holdings.changes()) == []


def test_a_holder_offers_what_it_cannot_reach_to_each_other_member_in_turn() -> None:
    """Zone and capacity are not asked; without another member, or while it is offered already, nothing is offered."""
    view = {name: Member(name, zone="eu-1" if name == "b" else "") for name in NAMES}
    leases = {agent: Lease("a", 1) for agent in AGENTS} | {"agent-1": OFFERED, "agent-2": Lease("c", 1)}

    def offers(unreachable: dict[str, int], members: dict[str, Member]) -> list[LeaseChange]:
        zones = dict.fromkeys(AGENTS, "eu-1")
        return list(Holdings("agent", "a", members, leases, zones, {}, unreachable=unreachable).changes())

    successors = {offers({"agent-0": attempt}, view)[0].successor for attempt in range(10)}

    assert successors == {"b", "c"}
    assert offers({"agent-1": 0, "agent-2": 0}, view) == []
    assert (
        offers({"agent-0": 0}, {"a": Member("a"), "b": Member("b", draining=True), "c": Member("c", draining=True)})
        == []
    )
    assert len(offers(dict.fromkeys(AGENTS, 0), view)) == MAX_OFFERS - 1, "one is offered already"


def test_a_rebalance_leaves_agents_alone_that_their_holder_cannot_reach() -> None:
    """They would be offered again and again."""
    leases = {agent: Lease("a", 1) for agent in AGENTS}
    view = {name: Member(name) for name in NAMES}
    holdings = Holdings("agent", "a", view, leases, dict.fromkeys(AGENTS, ""), {}, unsettled=frozenset(AGENTS))

    assert (list(holdings.rebalanced()), holdings.misplaced()) == ([], 0)
