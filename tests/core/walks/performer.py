"""The simulated performer, which does what the plan says, and checks each action against the world."""

from dataclasses import dataclass

from tests.core.walks.fleet import METHODS, Fleet
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import (
    AgentsDiscovered,
    Event,
    EvidenceAbsent,
    EvidenceFound,
    KeyExamined,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.reconcile import CloseTunnel, ExamineKey, Manner, OpenTunnel, SeekEvidence, begin, desired, plan
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Resting, TunnelSpec
from tunnelmgr.core.world import World
from tunnelmgr.errors import Pace

LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))


@dataclass
class Work:
    """A worker of the simulated performer, the key that its machine shows, and how it was asked to end."""

    life: int
    spec: TunnelSpec
    key: str
    dialled: bool = False
    asked: Manner | None = None

    @property
    def fits(self) -> bool:
        """Return whether the machine shows a key that is expected."""
        return self.key in self.spec.trust.keys


class Performer:
    """A world, the workers and searches that its plans started, and the machines that they reach."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.world = World()
        self.now = 1_000.0
        self.examinations: dict[AgentId, Agent] = {}
        self.workers: dict[AgentId, Work] = {}
        self.seekers: dict[AgentId, Agent] = {}
        self.old_evidence: list[EvidenceFound] = []
        self.batching = False

    def receive(self, *events: Event) -> None:
        """Apply events, and act on them unless `batching`."""
        for event in events:
            before = self.world
            self.world = evolve(before, event, self.now)
            self.nobody_else_is_harmed(before, event)
        if not self.batching:
            self.act()

    def nobody_else_is_harmed(self, before: World, event: Event) -> None:
        """Let no event about one agent close or block the tunnel of another that was dialled with its key."""
        about = getattr(event, "agent", None)
        dialling = self.workers.get(event.agent) if isinstance(event, TunnelDialled) else None
        if isinstance(event, TunnelDialled) and dialling is not None and dialling.life == event.life:
            dialling.dialled = self.world.records[event.agent].quarantine is None
        for id_, work in self.workers.items():
            work.dialled = work.dialled and self.world.records[id_].present  # one that left has to show its key again
            if id_ == about or not work.dialled or work.asked is not None:
                continue
            assert before.records[id_].quarantine or not self.world.records[id_].quarantine
            if about is not None:
                assert desired(before).get(id_) == desired(self.world).get(id_)

    def act(self) -> None:
        """Plan, check the plan, and perform it."""
        actions = plan(self.world, self.now)
        closings = [isinstance(action, CloseTunnel) for action in actions]
        assert closings == sorted(closings, reverse=True), "closings stand before openings"
        for action in actions:
            match action:
                case CloseTunnel():
                    self.close(action)
                case OpenTunnel():
                    self.open(action)
                case SeekEvidence(agent):
                    assert agent.id not in self.under_way()
                    self.seekers[agent.id] = agent
                case ExamineKey(agent):
                    assert agent.id not in self.under_way()
                    self.examinations[agent.id] = agent
        self.world = begin(self.world, actions, self.now)
        assert plan(self.world, self.now) == (), "what is under way is not started again"

    def open(self, action: OpenTunnel) -> None:
        """Check that this tunnel may be opened, and open it."""
        record = self.world.records[action.agent]
        assert action.agent not in self.under_way(), "never two workers for one agent"
        assert not self.world.draining
        assert record.present, "never for an agent that is gone"
        assert record.quarantine is None, "never for a quarantined agent"
        status = self.world.status(action.agent)
        assert isinstance(status, Resting), "never beside something else"
        assert (status.retry_at or 0) <= self.now, "never before its time"
        assert record.trust is not None, "never without evidence"
        assert self.world.rules.accepts(record.agent, record.trust.method), "never on evidence that is not accepted"
        assert (action.spec.trust, action.spec.incarnation) == (record.trust, record.agent.incarnation)
        found = EvidenceFound(action.agent, record.agent.incarnation, record.trust)
        assert found in self.old_evidence, "never on the evidence for another incarnation"
        assert action.spec.addresses == record.agent.addresses
        self.workers[action.agent] = Work(action.life, action.spec, self.fleet.key_of(record.agent))

    def close(self, action: CloseTunnel) -> None:
        """Check that this worker exists and was not asked already, and ask it to end."""
        work = self.workers[action.agent]
        assert work.life == action.life
        assert work.asked is not Manner.REVOKE, "asked to end at once only once"
        assert work.asked is not action.manner, "asked to drain only once"
        record = self.world.records[action.agent]
        is_ours = record.present and not record.quarantine and record.agent.incarnation == work.spec.incarnation
        assert is_ours or action.manner is Manner.REVOKE, "a machine that is no longer the agent keeps nothing"
        work.asked = action.manner

    def examined(self, id_: AgentId, *, reachable: bool) -> KeyExamined:
        """End an examination, and return what it brought."""
        agent = self.examinations.pop(id_)
        return KeyExamined(id_, agent.incarnation, self.fleet.key_of(agent) if reachable else "", "no answer")

    def succeed(self) -> None:
        """Let every search find evidence, every worker come up, and those that were asked to, end."""
        for id_ in list(self.examinations):
            self.receive(self.examined(id_, reachable=True))
        for id_, agent in list(self.seekers.items()):
            self.succeed_search(id_, agent)
        for id_, work in list(self.workers.items()):
            if work.asked:
                self.receive(TunnelEnded(id_, self.workers.pop(id_).life, None))
            elif work.fits:
                self.receive(*progress(id_, work.life, work.key, conflicts=False))
            else:
                mismatch = Failure("host-key-mismatch", Pace.NEVER, "another key")
                self.receive(TunnelEnded(id_, self.workers.pop(id_).life, mismatch))

    def succeed_search(self, id_: AgentId, agent: Agent) -> None:
        """Find the best evidence that the rules accept, if any."""
        del self.seekers[id_]
        method = next(iter(self.believable(agent)), None)
        if method is None:
            self.receive(EvidenceAbsent(id_, agent.incarnation, "no method is accepted"))
        else:
            found = EvidenceFound(id_, agent.incarnation, HostTrust(method, self.fleet.named_for(agent)))
            self.old_evidence.append(found)
            self.receive(found)

    def believable(self, agent: Agent) -> list[Method]:
        """Return the methods that the rules accept and that are as strong as the proof of before."""
        before = self.world.records[agent.id].proved if agent.id in self.world.records else None
        accepted = [method for method in METHODS[agent.source] if self.world.rules.accepts(agent, method)]
        return [method for method in accepted if before is None or method.reaches(before.method)]

    def list_source(self, source: str) -> None:
        """Receive a source's whole answer."""
        self.receive(AgentsDiscovered(source, self.fleet.snapshot(source)))

    def present(self) -> set[AgentId]:
        """Return the agents that are present, as far as the world knows."""
        return {id_ for id_, record in self.world.records.items() if record.present}

    def under_way(self) -> set[AgentId]:
        """Return the agents that have a worker or a search."""
        return self.workers.keys() | self.seekers.keys() | self.examinations.keys()


def progress(id_: AgentId, life: int, key: str, *, conflicts: bool) -> tuple[Event, Event, Event]:
    """Return the reports of a worker that succeeds, in order."""
    held, refused = (LISTEN[:1], LISTEN[1:]) if conflicts else (LISTEN, ())
    return (
        TunnelDialled(id_, life, "10.0.0.1:22", host_key=key),
        TunnelBound(id_, life, held, refused, tuple(map(str, refused))),
        TunnelProbed(id_, life, 0.01),
    )
