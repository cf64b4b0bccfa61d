"""One member of a cluster's walk: the real core, with workers and a network that fail as the dice say."""

import base64
import random
from dataclasses import dataclass, field, replace

from tests.core.cluster_walks.machines import AGENTS, ModelDatabase, Port
from tests.core.conftest import RULES
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import Cluster
from tunnelmgr.core.cluster_messages import Outgoing, merged
from tunnelmgr.core.events import (
    AgentsDiscovered,
    ClusterChanged,
    Event,
    EvidenceFound,
    Reconfigured,
    StateShared,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.lease_requests import Situation, new_statuses, requested
from tunnelmgr.core.ownership import LEASE_SECONDS, Member
from tunnelmgr.core.persistence import changes
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel, SeekEvidence, begin, plan
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.core.world import World
from tunnelmgr.errors import Pace

LISTEN = (Endpoint("127.0.0.1", 5000),)
UNREACHABLE = Failure("unreachable", Pace.SOON, "no answer")
HELD_ELSEWHERE = Failure("held-elsewhere", Pace.SOON, "held")


def key_of(agent: AgentId) -> str:
    """Return the host key of an agent."""
    return f"ssh-ed25519 {base64.b64encode(agent.encode()).decode()}"


@dataclass
class ModelMember:
    """A member with its world and its workers; `life` says how far each worker is: dialling, logged in, up."""

    name: str
    database: ModelDatabase
    ports: dict[AgentId, Port]
    dice: random.Random
    now: float = 0.0
    cut_off: bool = False
    blind: bool = False
    draining: bool = False
    told: World = field(default_factory=World)
    written: World = field(default_factory=World)
    workers: dict[AgentId, tuple[int, str]] = field(default_factory=dict)
    failed: dict[AgentId, int] = field(default_factory=dict)
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.world = World(cluster=Cluster(self.name))
        self.receive(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset(AGENTS))))

    def receive(self, *events: Event) -> None:
        """Apply events."""
        for event in events:
            self.world = evolve(self.world, event, self.now)

    def turn(self) -> int:
        """Exchange with the database, as `daemon/membership.py` does; return how many lease changes were accepted."""
        assert self.world.cluster is not None
        if self.cut_off:
            self.told = World()
            self.receive(ClusterChanged(replace(self.world.cluster, error="away")))
            return 0
        me = Member(self.name, draining=self.draining)
        due = {id_: count for id_, count in self.failed.items() if count >= 2}
        outgoing = Outgoing(
            draining=self.draining,
            changes=requested(self.world, [], Situation(me, unreachable=due)),
            statuses=new_statuses(self.world, self.told),
        )
        incoming = self.database.tick(me, outgoing, self.now)
        self.told = self.world
        self.failed |= dict.fromkeys(due, 0)
        before, cluster = self.world.cluster, merged(self.world.cluster, incoming, self.now + LEASE_SECONDS - 2)
        lost = {id_ for id_ in incoming.agents if before.holds(id_) and not cluster.holds(id_)}
        self.receive(
            StateShared(tuple(one for one in incoming.records if one.agent.id not in lost)),
            ClusterChanged(cluster, frozenset(id_ for id_ in incoming.agents if not before.serves(id_))),
            StateShared(tuple(one for one in incoming.records if one.agent.id in lost)),
        )
        return incoming.accepted

    def act(self) -> int:
        """Begin what the plan says; return how many actions there were."""
        actions = plan(self.world, self.now)
        self.world = begin(self.world, actions, self.now)
        for action in actions:
            match action:
                case SeekEvidence(agent):
                    trust = HostTrust(Method.CONSOLE, (key_of(agent.id),))
                    self.receive(EvidenceFound(agent.id, agent.incarnation, trust))
                case OpenTunnel(agent, life):
                    self.workers[agent] = life, "dialling"
                case CloseTunnel(agent, life, manner):
                    self.ports[agent].free(self.name, life)
                    if manner is Manner.REVOKE or self.dice.random() < 0.5:
                        self.end(agent, None)
                    else:
                        self.workers[agent] = life, "draining"
        self.write()
        return len(actions)

    def write(self) -> None:
        """Store what has changed, unless the database does not answer."""
        if not self.cut_off:
            due = changes(self.written, self.world)
            dropped = self.database.write(self.name, due)
            kept = {id_: record for id_, record in self.world.records.items() if id_ not in dropped}
            self.written = replace(self.world, records={**self.written.records, **kept})

    def work(self, agent: AgentId) -> None:
        """Let one worker take its next step."""
        life, step = self.workers[agent]
        port = self.ports[agent]
        match step:
            case "draining":
                self.end(agent, None)
            case _ if self.blind:
                self.end(agent, UNREACHABLE)
            case "dialling":
                self.workers[agent] = life, "logged in"
                self.failed.pop(agent, None)
                self.receive(TunnelDialled(agent, life, "10.0.0.1", "SHA256:login", key_of(agent)))
            case "logged in" if port.bind(self.name, life, self.now):
                self.workers[agent] = life, "up"
                self.receive(TunnelBound(agent, life, LISTEN), TunnelProbed(agent, life, 0.01))
            case "logged in":
                if self.dice.random() < 0.2:
                    self.end(agent, HELD_ELSEWHERE)

    def end(self, agent: AgentId, failure: Failure | None) -> None:
        """End a worker; what it held stays with the agent's sshd for a while if its network is gone."""
        life, _ = self.workers.pop(agent)
        port = self.ports[agent]
        if failure is UNREACHABLE:
            self.failed[agent] = self.failed.get(agent, 0) + 1
            if (port.holder, port.life) == (self.name, life):
                port.dead_since = self.now
        else:
            port.free(self.name, life)
        self.receive(TunnelEnded(agent, life, failure))

    def die(self) -> None:
        """End without a word: the agents' sshds notice later."""
        for agent in self.workers:
            port = self.ports[agent]
            if port.holder == self.name:
                port.dead_since = self.now
        self.workers.clear()
