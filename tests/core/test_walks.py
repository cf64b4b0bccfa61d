"""Random walks over all events, with a performer that does what the plan says.

After every step the invariants of core/evolve hold; from every state the world converges, drains and forgets.
"""

import base64
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import (
    AgentsDiscovered,
    DiscoveryFailed,
    DrainRequested,
    Event,
    EvidenceAbsent,
    EvidenceFound,
    KeyExamined,
    Reconfigured,
    ReleaseRequested,
    RetentionExpired,
    RetryRequested,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.missing_agents import LONGEST_GRACE
from tunnelmgr.core.reconcile import (
    CloseTunnel,
    ExamineKey,
    Manner,
    OpenTunnel,
    SeekEvidence,
    begin,
    desired,
    next_due,
    plan,
)
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward, Phase, Resting, TunnelSpec, Working
from tunnelmgr.core.world import World, resting_phase
from tunnelmgr.errors import Pace

AGENTS = tuple(map(AgentId, ("cloud:0", "cloud:1", "cloud:2", "file:0")))
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
GROUPS = ("ci", "strict")
METHODS = {"cloud": (Method.CONSOLE, Method.AUTHORITY, Method.TOFU), "file": (Method.PINNED,)}
SOURCES = tuple(METHODS)
LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))
FORWARDS = (Forward("registry", LISTEN, Endpoint("127.0.0.1", 5000)),)
ALL_RULES = (
    Rules(FORWARDS, METHODS, {"strict": Method.CONSOLE}),
    Rules(FORWARDS, METHODS, {"strict": Method.AUTHORITY}),
    Rules((), METHODS, {}),
    Rules(FORWARDS, {"cloud": (Method.CONSOLE,)}, {}),
)

FAILURES = (None, *(Failure(pace.value, pace, f"it fails {pace}") for pace in Pace))


def key(number: int) -> str:
    """Return a made-up public key."""
    return f"ssh-ed25519 {base64.b64encode(number.to_bytes(6, 'big')).decode()}"


def sorted_by_id(agents: Iterable[Agent]) -> list[Agent]:
    """Return agents in an order that is the same in every run."""
    return sorted(agents, key=lambda agent: agent.id)


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


class Walk:
    """A fleet, two sources that list it completely or in part, and a performer."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - the dice of a game
        self.world = World()
        self.now = 1_000.0
        self.fleet: dict[AgentId, Agent] = {}
        self.ended: set[AgentId] = set()
        self.shared: dict[AgentId, int] = {}
        self.forged: dict[AgentId, AgentId] = {}
        self.examinations: dict[AgentId, Agent] = {}
        self.workers: dict[AgentId, Work] = {}
        self.seekers: dict[AgentId, Agent] = {}
        self.old_evidence: list[EvidenceFound] = []
        self.batching = False
        self.receive(Reconfigured(ALL_RULES[0]))

    def go(self, steps: int) -> None:
        """Take this many steps, and check the invariants after each."""
        for _ in range(steps):
            (step,) = self.dice.choices([name for name, _ in STEPS], [weight for _, weight in STEPS])
            step(self)
            self.check()

    def check(self) -> None:
        """Check the invariants."""
        self.keys_are_held()
        self.statuses_agree_with_records()
        self.waiting_ends_with_something_to_do()

    # --- what the controller's loop does ---

    def receive(self, *events: Event) -> None:
        """Apply events, and act on them unless the walk is batching."""
        for event in events:
            before = self.world
            self.world = evolve(before, event, self.now)
            self.nobody_else_is_harmed(before, event)
        if not self.batching:
            self.act()

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
        assert plan(self.world, self.now) == (), "what is under way is not begun again"

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
        told = EvidenceFound(action.agent, record.agent.incarnation, record.trust)
        assert told in self.old_evidence, "never on the evidence for another incarnation"
        assert action.spec.addresses == record.agent.addresses
        self.workers[action.agent] = Work(action.life, action.spec, self.key_of(record.agent))

    def close(self, action: CloseTunnel) -> None:
        """Check that this worker exists and was not asked already, and ask it to end."""
        work = self.workers[action.agent]
        assert work.life == action.life
        assert work.asked is not Manner.REVOKE, "asked to end at once only once"
        assert work.asked is not action.manner, "asked to drain only once"
        record = self.world.records[action.agent]
        is_ours = record.present and not record.quarantine and record.agent.incarnation == work.spec.incarnation
        assert is_ours or action.manner is Manner.REVOKE, "nothing is left to one that is not the agent any more"
        work.asked = action.manner

    # --- what happens ---

    def launch(self) -> None:
        """Start, rebuild or move a machine.

        Some have another's address, some another's key, some no address; some only claim to have another's key.
        """
        id_ = self.dice.choice(AGENTS)
        self.ended.discard(id_)
        self.shared.pop(id_, None)
        self.forged.pop(id_, None)
        if self.dice.random() < 0.3:
            self.shared[id_] = self.dice.randrange(2)
        if self.dice.random() < 0.3:
            self.forged[id_] = self.dice.choice(AGENTS)
        addresses = (self.dice.choice(ADDRESSES),) if self.dice.random() < 0.9 else ()
        incarnation = self.dice.choice("1112")
        self.fleet[id_] = Agent(id_, incarnation, id_.split(":")[0], self.dice.choice(GROUPS), id_, addresses)

    def terminate(self) -> None:
        """End a machine; its source says so at the next answer."""
        id_ = self.dice.choice(AGENTS)
        if self.fleet.pop(id_, None):
            self.ended.add(id_)

    def vanish(self) -> None:
        """End a machine without a report."""
        self.fleet.pop(self.dice.choice(AGENTS), None)

    def list_whole(self) -> None:
        """Answer wholly; only what has ended or was missed before may leave."""
        source = self.dice.choice(SOURCES)
        before = self.present()
        missed = {id_ for id_ in before if self.world.records[id_].missed}

        self.receive(AgentsDiscovered(source, self.snapshot(source)))

        left = before - self.present()
        assert left <= self.ended | missed or source == "file"
        assert all(id_ not in self.fleet for id_ in left)

    def list_partly(self) -> None:
        """Answer in part; nobody leaves by being absent from that."""
        source = self.dice.choice(SOURCES)
        before, whole = self.present(), self.snapshot(source)
        partial = frozenset(agent for agent in sorted_by_id(whole.agents) if self.dice.random() < 0.5)

        self.receive(AgentsDiscovered(source, replace(whole, agents=partial, failures=("half of it",))))

        assert before - self.present() <= whole.gone

    def fail_to_list(self) -> None:
        """Answer not at all, which changes nobody's presence and nothing desired."""
        before, wanted = self.present(), desired(self.world)

        self.receive(DiscoveryFailed(self.dice.choice(SOURCES), "throttled"))

        assert self.present() == before
        assert desired(self.world) == wanted

    def answer_search(self) -> None:
        """End a search with evidence of any kind, or without."""
        if not self.seekers:
            return
        id_ = self.dice.choice(sorted(self.seekers))
        agent = self.seekers.pop(id_)
        method = self.dice.choice((*METHODS[agent.source], *METHODS[agent.source], *Method, None))
        if method is None:
            self.receive(EvidenceAbsent(id_, agent.incarnation, "no host key block yet"))
            return
        found = EvidenceFound(id_, agent.incarnation, HostTrust(method, self.named_for(agent)))
        self.old_evidence.append(found)
        self.receive(found)

    def answer_examination(self) -> None:
        """Let an agent in dispute show its key, or nothing."""
        if self.examinations:
            id_ = self.dice.choice(sorted(self.examinations))
            self.receive(self.examined(id_, reachable=self.dice.random() < 0.7))

    def examined(self, id_: AgentId, *, reachable: bool) -> KeyExamined:
        """End an examination, and return what it brought."""
        agent = self.examinations.pop(id_)
        return KeyExamined(id_, agent.incarnation, self.key_of(agent) if reachable else "", "no answer")

    def repeat_old_evidence(self) -> None:
        """Repeat old evidence; a search that is under way ends with it, as far as the world knows."""
        if self.old_evidence:
            found = self.dice.choice(self.old_evidence)
            self.seekers.pop(found.agent, None)
            known = self.world.records.get(found.agent)
            self.receive(found)
            if known and known.trust and self.world.rules.accepts(known.agent, known.trust.method):
                assert self.world.records[found.agent].trust == known.trust, "what was found first stays"

    def report(self) -> None:
        """Let a worker report anything, in any order."""
        if self.workers:
            id_ = self.dice.choice(sorted(self.workers))
            conflicts, work = self.dice.random() < 0.3, self.workers[id_]
            if work.fits:
                self.receive(self.dice.choice(self.progress(id_, work.life, work.key, conflicts=conflicts)))

    def end(self) -> None:
        """End a worker for any reason."""
        if self.workers:
            id_ = self.dice.choice(sorted(self.workers))
            self.receive(TunnelEnded(id_, self.workers.pop(id_).life, self.dice.choice(FAILURES)))

    def report_from_an_earlier_life(self) -> None:
        """Let a worker of the past report; that changes nothing."""
        id_ = self.dice.choice(AGENTS)
        life = self.workers[id_].life - 1 if id_ in self.workers else 1
        reports = (
            *self.progress(id_, life, key(0), conflicts=False),
            TunnelEnded(id_, life, self.dice.choice(FAILURES)),
        )
        before = self.world

        self.receive(self.dice.choice(reports))

        assert self.batching or self.world == before

    def reload(self) -> None:
        """Read another configuration."""
        self.receive(Reconfigured(self.dice.choice((ALL_RULES[0], *ALL_RULES))))

    def retry(self) -> None:
        """Ask for the next try now."""
        self.receive(RetryRequested(self.dice.choice(AGENTS)))

    def release(self) -> None:
        """Release an agent; what was believed of its key is forgotten."""
        id_ = self.dice.choice(AGENTS)
        was = self.world.records.get(id_)

        self.receive(ReleaseRequested(id_, "looked at"))

        assert was is None or was.quarantine is None or self.world.records[id_].trust is None

    def wait(self) -> None:
        """Let time pass."""
        self.now += self.dice.choice((0.1, 2.0, 15.0, 3600.0))
        self.receive()

    def forget(self) -> None:
        """Forget who left long ago."""
        present = self.present()

        self.receive(RetentionExpired(self.now - self.dice.choice((0.0, 60.0))))

        assert self.present() == present

    def batch(self) -> None:
        """Collect events before acting, as a loop does that was held up; or act at each again."""
        self.batching = not self.batching
        self.receive()

    def let_all_succeed(self) -> None:
        """List all, and let whatever is under way succeed, so that walks get far."""
        for source in SOURCES:
            self.receive(AgentsDiscovered(source, self.snapshot(source)))
        self.succeed()
        self.succeed()

    # --- what always holds ---

    def keys_are_held(self) -> None:
        """No two agents that are free claim one key, and the key's holder is the one that does."""
        free: dict[str, AgentId] = {}
        for id_, record in self.world.records.items():
            if record.present and record.quarantine is None:
                for one in record.possessed or (record.trust.keys if record.trust else ()):
                    assert one not in free
                    free[one] = id_
        assert free.items() <= self.world.key_holders.items()
        for one in self.world.key_holders.keys() - free.keys():
            record = self.world.records[self.world.key_holders[one]]
            assert record.present
            assert record.quarantine is not None
            assert one in {*record.possessed, *record.quarantine.disputed}

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

    def statuses_agree_with_records(self) -> None:
        """Require a worker or a search for each agent that does not rest in the phase that its record gives."""
        for id_, status in self.world.tunnels.items():
            record = self.world.records[id_]
            assert isinstance(status, Resting) == (id_ not in self.under_way())
            if isinstance(status, Resting):
                assert record.present
                assert status.phase is resting_phase(record)
                assert record.quarantine is None or status.error == record.quarantine.code
            elif isinstance(status, Working):
                assert status.life == self.workers[id_].life
                assert status.phase in {Phase.CONNECTING, Phase.UP, Phase.DRAINING}
        assert self.under_way() <= self.world.tunnels.keys()

    def waiting_ends_with_something_to_do(self) -> None:
        """Sleep only until a time that brings an action, and never past one."""
        if self.batching:
            return
        due = next_due(self.world)
        if due is None:
            assert plan(self.world, math.inf) == ()
        else:
            assert plan(self.world, max(due, self.now)) != ()

    # --- where every walk ends ---

    def settle(self) -> None:
        """List everything twice, long enough apart, and let all work succeed."""
        self.batching = False
        for source in SOURCES * 2:
            self.receive(AgentsDiscovered(source, self.snapshot(source)))
            self.now += LONGEST_GRACE
        for _ in range(4):
            self.now += 3600.0
            self.receive()
            self.succeed()

    def succeed(self) -> None:
        """Let every search find evidence, every worker come up, and those that were told to, end."""
        for id_ in list(self.examinations):
            self.receive(self.examined(id_, reachable=True))
        for id_, agent in list(self.seekers.items()):
            self.succeed_search(id_, agent)
        for id_, work in list(self.workers.items()):
            if work.asked:
                self.receive(TunnelEnded(id_, self.workers.pop(id_).life, None))
            elif work.fits:
                self.receive(*self.progress(id_, work.life, work.key, conflicts=False))
            else:
                mismatch = Failure("host-key-mismatch", Pace.NEVER, "another key")
                self.receive(TunnelEnded(id_, self.workers.pop(id_).life, mismatch))

    def succeed_search(self, id_: AgentId, agent: Agent) -> None:
        """Find the best evidence that the rules accept, if any."""
        del self.seekers[id_]
        method = next(iter(self.believable(agent)), None)
        if method is None:
            self.receive(EvidenceAbsent(id_, agent.incarnation, "no method may be believed"))
        else:
            found = EvidenceFound(id_, agent.incarnation, HostTrust(method, self.named_for(agent)))
            self.old_evidence.append(found)
            self.receive(found)

    def believable(self, agent: Agent) -> list[Method]:
        """Return the methods that the rules accept and that are as strong as the proof of before."""
        before = self.world.records[agent.id].proved if agent.id in self.world.records else None
        accepted = [method for method in METHODS[agent.source] if self.world.rules.accepts(agent, method)]
        return [method for method in accepted if before is None or method.reaches(before.method)]

    def check_converged(self) -> None:
        """Check that exactly the desired tunnels are up."""
        rules = self.world.rules
        listed = {id_: agent for id_, agent in self.fleet.items() if agent.source in rules.trust}
        assert self.present() == listed.keys()
        due = {
            id_
            for id_, agent in listed.items()
            if agent.addresses and self.world.records[id_].quarantine is None and self.believable(agent)
        }
        assert {id_ for id_, status in self.world.tunnels.items() if status.phase is Phase.UP} == due
        assert self.workers.keys() == due == desired(self.world).keys()
        assert all(self.workers[id_].spec == spec for id_, spec in desired(self.world).items())

    def drain(self) -> None:
        """Stop: every worker is told, and when all are over nothing stands and nothing is due."""
        self.batching = False
        self.receive(DrainRequested())
        assert all(work.asked for work in self.workers.values())
        for id_, work in list(self.workers.items()):
            del self.workers[id_]
            self.receive(TunnelEnded(id_, work.life, None))
        for id_, agent in list(self.seekers.items()):
            self.succeed_search(id_, agent)
        for id_ in list(self.examinations):
            self.receive(self.examined(id_, reachable=True))
        assert all(isinstance(status, Resting) for status in self.world.tunnels.values())
        assert plan(self.world, math.inf) == ()
        assert next_due(self.world) is None

    def forget_all(self) -> None:
        """Let all machines vanish, what is under way end, and the memory expire."""
        self.batching = False
        self.fleet.clear()
        for source in SOURCES * 2:
            self.receive(AgentsDiscovered(source, self.snapshot(source)))
            self.now += LONGEST_GRACE
        self.succeed()
        self.receive(RetentionExpired(self.now + 1))

    # --- small parts ---

    def present(self) -> set[AgentId]:
        """Return who is there, as far as the world knows."""
        return {id_ for id_, record in self.world.records.items() if record.present}

    def snapshot(self, source: str) -> Snapshot:
        """Return a source's whole answer."""
        listed = frozenset(agent for agent in self.fleet.values() if agent.source == source)
        gone = frozenset(id_ for id_ in self.ended if id_.startswith(source))
        return Snapshot(listed, gone, absence_is_proof=source == "file")

    def under_way(self) -> set[AgentId]:
        """Return the agents that have a worker, or are asked for something."""
        return self.workers.keys() | self.seekers.keys() | self.examinations.keys()

    def key_of(self, agent: Agent) -> str:
        """Return the key that an agent has: its own, or one that others have too."""
        own = 100 + AGENTS.index(agent.id) * 10 + int(agent.incarnation)
        return key(self.shared.get(agent.id, own))

    def named_for(self, agent: Agent) -> tuple[str, ...]:
        """Return the keys that evidence names: the agent's own, and with some another's, or that alone."""
        own, victim = self.key_of(agent), self.fleet.get(self.forged.get(agent.id, agent.id), agent)
        other = self.key_of(victim)
        return (other,) if self.dice.random() < 0.2 else tuple(dict.fromkeys((own, other)))

    @staticmethod
    def progress(id_: AgentId, life: int, key: str, *, conflicts: bool) -> tuple[Event, Event, Event]:
        """Return the reports of a worker that succeeds, in order."""
        held, refused = (LISTEN[:1], LISTEN[1:]) if conflicts else (LISTEN, ())
        return (
            TunnelDialled(id_, life, "10.0.0.1:22", host_key=key),
            TunnelBound(id_, life, held, refused, tuple(map(str, refused))),
            TunnelProbed(id_, life, 0.01),
        )


STEPS: tuple[tuple[Callable[[Walk], None], int], ...] = (
    (Walk.launch, 6),
    (Walk.terminate, 2),
    (Walk.vanish, 1),
    (Walk.list_whole, 8),
    (Walk.list_partly, 2),
    (Walk.fail_to_list, 1),
    (Walk.answer_search, 8),
    (Walk.answer_examination, 4),
    (Walk.repeat_old_evidence, 2),
    (Walk.report, 8),
    (Walk.end, 4),
    (Walk.report_from_an_earlier_life, 2),
    (Walk.reload, 1),
    (Walk.retry, 2),
    (Walk.release, 3),
    (Walk.wait, 4),
    (Walk.forget, 2),
    (Walk.batch, 2),
    (Walk.let_all_succeed, 3),
)
"""What may happen, and how often."""

# The same walks each time; a shorter length shows the first step that goes wrong.
walks = given(seed=st.integers(0, 2**32), steps=st.integers(20, 250))
thorough = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@walks
@thorough
def test_from_anywhere_the_world_converges(seed: int, steps: int) -> None:
    """If everything succeeds from now on, exactly the desired tunnels come up."""
    walk = Walk(seed)
    walk.go(steps)

    walk.settle()

    walk.check_converged()


@walks
@thorough
def test_from_anywhere_the_world_drains_to_nothing(seed: int, steps: int) -> None:
    """A drain asks every worker once, starts nothing, and is complete when the workers have ended."""
    walk = Walk(seed)
    walk.go(steps)

    walk.drain()

    walk.check()


@walks
@thorough
def test_from_anywhere_the_world_forgets_what_is_gone(seed: int, steps: int) -> None:
    """Nothing is left of agents that are gone once their workers have ended and their retention has expired."""
    walk = Walk(seed)
    walk.go(steps)

    walk.forget_all()

    assert (walk.world.records, walk.world.tunnels, walk.world.key_holders) == ({}, {}, {})
