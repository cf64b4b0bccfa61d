"""Random walks of a whole cluster: each member is the real core; the database, the agents and the network are models.

Members are cut off from the database or from the agents, drain, die and come back, with turns and workers in any order.
Regardless of what has happened, once nothing fails any longer each agent ends with one holder, which listens there;
and then nothing moves.
"""

import random

import pytest

from tests.core.cluster_walks.machines import AGENTS, ALIVE_SECONDS, NAMES, ModelDatabase, Port
from tests.core.cluster_walks.member import ModelMember
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.ownership import LEASE_SECONDS
from tunnelmgr.core.tunnel import Phase

STEPS = 300


class Walk:
    """Three members, their database and five agents."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - reproducible walks
        self.database = ModelDatabase()
        self.ports: dict[AgentId, Port] = {agent.id: Port() for agent in AGENTS}
        self.now = 0.0
        self.members = {name: self.born(name) for name in NAMES}

    def born(self, name: str) -> ModelMember:
        """Return a member that has just started."""
        return ModelMember(name, self.database, self.ports, self.dice, self.now)

    def step(self) -> None:
        """Let something happen."""
        member = self.members[self.dice.choice(NAMES)]
        member.now = self.now
        match self.dice.randrange(14):
            case 0:
                member.cut_off = not member.cut_off
            case 1:
                member.blind = not member.blind
            case 2:
                member.draining = not member.draining
            case 3:
                self.restart(member)
            case 4 | 5:
                self.now += self.dice.choice([0.5, 1.0, 3.0, LEASE_SECONDS])
            case 6 | 7 | 8:
                member.turn()
            case 9 | 10:
                member.act()
            case _ if member.workers:
                member.work(self.dice.choice(list(member.workers)))
        self.check()

    def restart(self, member: ModelMember) -> None:
        """Let a member die, and come back under a new term as the database does it."""
        member.die()
        self.database.rejoin(member.name)
        self.members[member.name] = self.born(member.name)

    def check(self) -> None:
        """Check that a member believes that a tunnel is up only where its own session listens, or its network fails."""
        for member in self.members.values():
            for agent, status in member.world.tunnels.items():
                if status.phase is Phase.UP and not member.blind:
                    assert self.ports[agent].holder == member.name or member.workers[agent][1] != "up"

    def recover(self) -> None:
        """End all faults, and let everybody work until nothing is left to do."""
        for member in self.members.values():
            member.cut_off = member.blind = member.draining = False
        for _ in range(60):
            self.round()

    def round(self, *without: str) -> int:
        """Let every member exchange and act, and every worker take its next step; return how much has changed."""
        self.now += max(1.0, ALIVE_SECONDS / 5)
        changed = 0
        for member in (one for name, one in self.members.items() if name not in without):
            member.now = self.now
            changed += member.turn() + member.act()
            for agent in list(member.workers):
                member.work(agent)
        return changed

    def check_that_all_is_served(self, *names: str) -> None:
        """Check that these members hold all agents, that each holder listens there, and that nothing moves."""
        holders = {id_: lease.holder for id_, lease in self.database.leases.items()}
        assert holders.keys() == self.ports.keys()
        assert {id_: port.holder for id_, port in self.ports.items()} == holders
        assert set(holders.values()) <= set(names)
        assert all(lease.successor is None for lease in self.database.leases.values())
        assert {id_: name for name in names for id_ in self.members[name].workers} == holders
        gone = set(NAMES) - set(names)
        assert [self.round(*gone) for _ in range(10)] == [0] * 10, "nothing flaps"


@pytest.mark.parametrize("seed", range(100))
def test_each_agent_ends_with_one_holder_that_listens_there(seed: int) -> None:
    """Terms only rise, two members never write under one term, and nothing flaps after the faults have ended."""
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
    walk.recover()

    walk.check_that_all_is_served(*NAMES)


@pytest.mark.parametrize("fault", ["drained", "blind", "dead"])
@pytest.mark.parametrize("seed", range(30))
def test_a_member_that_cannot_serve_keeps_nothing(seed: int, fault: str) -> None:
    """The others take over what a member holds that drains, that cannot reach the agents, or that is dead."""
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
    walk.recover()
    name = walk.dice.choice(NAMES)
    others = [other for other in NAMES if other != name]
    gone = ()
    match fault:
        case "drained":
            walk.members[name].draining = True
        case "blind":
            walk.members[name].blind = True
        case _:
            walk.members[name].die()
            gone = (name,)
    for _ in range(60):
        walk.round(*gone)

    walk.check_that_all_is_served(*others)
