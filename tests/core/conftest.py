"""A short notation for histories in which agents are discovered, proved and dialled."""

import base64
from dataclasses import dataclass, field, replace

import pytest

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import (
    AgentsDiscovered,
    Event,
    EvidenceFound,
    KeyExamined,
    Reconfigured,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.persistence import StoredState, changes, restored
from tunnelmgr.core.reconcile import Action, begin, desired, plan
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec, TunnelStatus
from tunnelmgr.core.world import Record, World
from tunnelmgr.errors import Pace

LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))
FORWARD = Forward("registry", LISTEN, Endpoint("127.0.0.1", 5000))
RULES = Rules((FORWARD,), {"cloud": (Method.CONSOLE, Method.TOFU), "file": (Method.PINNED,)})


@dataclass
class History:
    """Drives a world as the controller does; `now` is a number that the test moves."""

    world: World = field(default_factory=World)
    now: float = 100.0
    rules: Rules = RULES
    listen: tuple[Endpoint, ...] = LISTEN

    def receive(self, *events: Event) -> None:
        """Apply events, without acting."""
        for event in events:
            self.world = evolve(self.world, event, self.now)

    def act(self) -> tuple[Action, ...]:
        """Plan, begin, and return the actions."""
        actions = plan(self.world, self.now)
        self.world = begin(self.world, actions, self.now)
        return actions

    def agent(self, name: str = "a", **facts: object) -> Agent:
        """Return an agent of the cloud, with the facts that differ from the default."""
        usual = Agent(AgentId(f"cloud:{name}"), "1", "cloud", "ci", name, ("10.0.0.1",))
        return replace(usual, **facts)  # type: ignore[arg-type]

    def listed(self, *agents: Agent, source: str = "cloud", **facts: object) -> None:
        """Let a source answer with these agents."""
        self.receive(AgentsDiscovered(source, Snapshot(frozenset(agents), **facts)))  # type: ignore[arg-type]

    def key(self, number: int = 1) -> str:
        """Return a made-up public key."""
        return f"ssh-ed25519 {base64.b64encode(number.to_bytes(6, 'big')).decode()}"

    def trust(self, number: int = 1, method: Method = Method.CONSOLE) -> HostTrust:
        """Return evidence of one key."""
        return HostTrust(method, (self.key(number),))

    def believed(self, agent: Agent, number: int = 1) -> None:
        """List an agent, with others that are there, and find evidence for it."""
        others = {record.agent for record in self.world.records.values() if record.present}
        self.listed(*(other for other in others if other.id != agent.id), agent)
        self.act()
        self.receive(EvidenceFound(agent.id, agent.incarnation, self.trust(number)))

    def accept(self, *methods: Method, authorities: tuple[str, ...] = ()) -> None:
        """Let the rules accept these methods for the cloud's agents, and these authorities."""
        self.rules = replace(self.rules, trust={"cloud": methods}, authorities={"cloud": frozenset(authorities)})
        self.receive(Reconfigured(self.rules))

    def prove(self, agent: Agent, method: Method, number: int = 1) -> None:
        """List an agent, with others that are there, search, and find evidence by a method."""
        others = {record.agent for record in self.world.records.values() if record.present}
        self.listed(*(other for other in others if other.id != agent.id), agent)
        self.act()
        self.receive(EvidenceFound(agent.id, self.record(agent).agent.incarnation, self.trust(number, method)))

    def restart(self) -> None:
        """Begin again with what the store would hold."""
        due = changes(World(), self.world)
        stored = StoredState({record.agent.id: record for record in due.records}, {seed.id: seed for seed in due.seeds})
        self.world = restored(stored, self.now)
        self.receive(Reconfigured(self.rules))

    def claim(self, agent: Agent, *numbers: int, method: Method = Method.CONSOLE) -> None:
        """List an agent, with others that are there, and let its evidence name these keys."""
        others = {record.agent for record in self.world.records.values() if record.present}
        self.listed(*(other for other in others if other.id != agent.id), agent)
        keys = tuple(self.key(number) for number in numbers)
        self.receive(EvidenceFound(agent.id, agent.incarnation, HostTrust(method, keys)))

    def show(self, agent: Agent, number: int | None) -> None:
        """Answer an agent's examination with this key, or with none."""
        key, message = ("", "no answer in time") if number is None else (self.key(number), "")
        self.receive(KeyExamined(agent.id, agent.incarnation, key, message))

    def quarantine_code(self, agent: Agent) -> str | None:
        """Return why an agent is in quarantine, None if it is not."""
        mark = self.record(agent).quarantine
        return mark.code if mark else None

    def dialling(self, agent: Agent, number: int = 1) -> None:
        """Bring an agent to `connecting`."""
        self.believed(agent, number)
        self.act()

    def dialled(self, agent: Agent, number: int = 1) -> None:
        """Let the agent show its key to the worker that dials it."""
        self.receive(TunnelDialled(agent.id, self.status(agent).life, agent.address, host_key=self.key(number)))

    def up(self, agent: Agent, number: int = 1) -> None:
        """Bring an agent all the way to `up`."""
        self.dialling(agent, number)
        self.up_again(agent, number)

    def up_again(self, agent: Agent, number: int = 1) -> None:
        """Bring an agent that is dialled to `up`."""
        life = self.status(agent).life
        self.dialled(agent, number)
        self.receive(TunnelBound(agent.id, life, self.listen))
        self.receive(TunnelProbed(agent.id, life, 0.02))

    def ended(self, agent: Agent, pace: Pace | None = Pace.SOON) -> None:
        """Let the agent's worker end: with a failure of this pace, or as asked."""
        failure = None if pace is None else self.failure(pace)
        self.receive(TunnelEnded(agent.id, self.status(agent).life, failure))

    def failure(self, pace: Pace = Pace.NEVER) -> Failure:
        """Return a failure of this pace; by default an operator has to decide."""
        return Failure(f"code-{pace}", pace, f"it failed, {pace}")

    def record(self, agent: Agent) -> Record:
        """Return what is remembered of an agent."""
        return self.world.records[agent.id]

    def spec(self, agent: Agent) -> TunnelSpec | None:
        """Return the tunnel that an agent should have."""
        return desired(self.world).get(agent.id)

    def status(self, agent: Agent) -> TunnelStatus:
        """Return the state of an agent's tunnel."""
        return self.world.status(agent.id)

    def steps(self, agent: Agent) -> list[str]:
        """Return the steps of the agent's history, in order."""
        return [moment.step for moment in self.record(agent).history]


@pytest.fixture
def history() -> History:
    """Return a history in which the configuration has been read."""
    new = History()
    new.receive(Reconfigured(RULES))
    return new
