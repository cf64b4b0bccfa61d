"""Random walks over everything that can happen, with a performer that does what the plan says.

At every step the world must be whole; from wherever a walk has led it must converge, drain and forget.
"""

import base64
import math
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import (
    AgentsDiscovered,
    DiscoveryFailed,
    DrainRequested,
    Event,
    EvidenceAbsent,
    EvidenceFound,
    Failure,
    MemoryExpired,
    Reconfigured,
    ReleaseRequested,
    RetryRequested,
    Rules,
    Snapshot,
    TunnelBound,
    TunnelDialled,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel, SeekEvidence, begin, desired, next_due, plan
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward, Phase, TunnelSpec
from tunnelmgr.core.world import World, resting_phase
from tunnelmgr.errors import Pace

AGENTS = tuple(map(AgentId, ("cloud:0", "cloud:1", "cloud:2", "file:0")))
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
GROUPS = ("ci", "strict")
METHODS = {"cloud": (Method.CONSOLE, Method.TOFU), "file": (Method.PINNED,)}
LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))
FORWARDS = (Forward("registry", LISTEN, Endpoint("127.0.0.1", 5000)),)
ALL_RULES = (
    Rules(FORWARDS, METHODS, {"strict": Method.CONSOLE}),
    Rules(FORWARDS, METHODS, {"strict": Method.AUTHORITY}),
    Rules((), METHODS, {}),
    Rules(FORWARDS, {"cloud": (Method.CONSOLE,)}, {}),
)

agents = st.sampled_from(AGENTS)
sources = st.sampled_from(tuple(METHODS))
failures = st.none() | st.sampled_from([Failure(pace.value, pace, f"it fails {pace}") for pace in Pace])


def key(number: int) -> str:
    """Return a made-up public key."""
    return f"ssh-ed25519 {base64.b64encode(number.to_bytes(6, 'big')).decode()}"


@dataclass
class Work:
    """A worker of the simulated performer, and how it was told to end."""

    life: int
    spec: TunnelSpec
    told: Manner | None = None


class Walk(RuleBasedStateMachine):
    """A fleet, two sources that list it more or less well, and a performer."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.now = 1_000.0
        self.fleet: dict[AgentId, Agent] = {}
        self.ended: set[AgentId] = set()
        self.shared: dict[AgentId, int] = {}
        self.workers: dict[AgentId, Work] = {}
        self.seekers: dict[AgentId, Agent] = {}
        self.old_evidence: list[Event] = []
        self.batching = False

    # --- what the controller's loop does ---

    def hear(self, *events: Event) -> None:
        """Take events in; act upon them now, unless more are to come first."""
        for event in events:
            self.world = evolve(self.world, event, self.now)
        if not self.batching:
            self.act()

    def act(self) -> None:
        """Plan, check the plan against the rules of the house, and perform it."""
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
                    assert agent.id not in self.seekers
                    assert agent.id not in self.workers
                    self.seekers[agent.id] = agent
        self.world = begin(self.world, actions, self.now)
        assert plan(self.world, self.now) == (), "what is under way is not begun again"

    def open(self, action: OpenTunnel) -> None:
        """Check that this tunnel may be opened, and open it."""
        record = self.world.records[action.agent]
        assert action.agent not in self.workers, "never two workers for one agent"
        assert action.agent not in self.seekers
        assert not self.world.draining
        assert record.present, "never for an agent that is gone"
        assert record.quarantine is None, "never for a quarantined agent"
        assert (self.world.status(action.agent).retry_at or 0) <= self.now, "never before its time"
        assert record.trust is not None, "never without evidence"
        assert self.world.rules.accepts(record.agent, record.trust.method), "never on evidence that is not accepted"
        assert (action.spec.trust, action.spec.incarnation) == (record.trust, record.agent.incarnation)
        assert action.spec.addresses == record.agent.addresses
        self.workers[action.agent] = Work(action.life, action.spec)

    def close(self, action: CloseTunnel) -> None:
        """Check that this worker lives and was not told so already, and tell it."""
        work = self.workers[action.agent]
        assert work.life == action.life
        assert work.told is not Manner.REVOKE, "told to end at once, once"
        assert work.told is not action.manner, "told to drain once"
        work.told = action.manner

    # --- what happens ---

    @initialize()
    def start(self) -> None:
        """Read the configuration."""
        self.hear(Reconfigured(ALL_RULES[0]))

    @rule(
        id_=agents,
        address=st.sampled_from(ADDRESSES) | st.none(),
        group=st.sampled_from(GROUPS),
        incarnation=st.integers(1, 2),
        shared=st.none() | st.integers(0, 1),
    )
    def launch(self, id_: AgentId, address: str | None, group: str, incarnation: int, shared: int | None) -> None:
        """Start, rebuild or move a machine; some have another's address, some another's key."""
        self.ended.discard(id_)
        self.shared.pop(id_, None)
        if shared is not None:
            self.shared[id_] = shared
        addresses = (address,) if address else ()
        self.fleet[id_] = Agent(id_, str(incarnation), id_.split(":")[0], group, id_, addresses)

    @rule(id_=agents)
    def terminate(self, id_: AgentId) -> None:
        """End a machine; its source says so at the next answer."""
        if self.fleet.pop(id_, None):
            self.ended.add(id_)

    @rule(id_=agents)
    def vanish(self, id_: AgentId) -> None:
        """End a machine without a word."""
        self.fleet.pop(id_, None)

    @rule(source=sources)
    def list_whole(self, source: str) -> None:
        """Answer wholly; only what has ended or was missed before may leave."""
        before = self.present()
        missed = {id_ for id_ in before if self.world.records[id_].missed}

        self.hear(AgentsDiscovered(source, self.snapshot(source)))

        left = before - self.present()
        assert left <= self.ended | missed or source == "file"
        assert all(id_ not in self.fleet for id_ in left)

    @rule(source=sources, lacking=st.sets(agents, max_size=6))
    def list_partly(self, source: str, lacking: set[AgentId]) -> None:
        """Answer in part; nobody leaves by being absent from that."""
        before, whole = self.present(), self.snapshot(source)
        partial = frozenset(agent for agent in whole.agents if agent.id not in lacking)

        self.hear(AgentsDiscovered(source, replace(whole, agents=partial, failures=("half of it",))))

        assert before - self.present() <= whole.gone

    @rule(source=sources)
    def fail_to_list(self, source: str) -> None:
        """Answer not at all, which changes nobody's presence and nothing planned."""
        before, wanted = self.present(), desired(self.world)

        self.hear(DiscoveryFailed(source, "throttled"))

        assert self.present() == before
        assert desired(self.world) == wanted

    @precondition(lambda self: self.seekers)
    @rule(choice=st.integers(0, 7), method=st.sampled_from([Method.CONSOLE, Method.PINNED, Method.TOFU, None]))
    def answer_search(self, choice: int, method: Method | None) -> None:
        """End a search with evidence, or without."""
        id_ = sorted(self.seekers)[choice % len(self.seekers)]
        agent = self.seekers.pop(id_)
        if method is None:
            self.hear(EvidenceAbsent(id_, agent.incarnation, "no host key block yet"))
            return
        found = EvidenceFound(id_, agent.incarnation, HostTrust(method, (self.key_of(agent),)))
        self.old_evidence.append(found)
        self.hear(found)

    @precondition(lambda self: self.old_evidence)
    @rule(choice=st.integers(0, 50))
    def repeat_old_evidence(self, choice: int) -> None:
        """Tell again what was found long ago; a search that is under way ends by it, as far as the world knows."""
        found = self.old_evidence[choice % len(self.old_evidence)]
        assert isinstance(found, EvidenceFound)
        self.seekers.pop(found.agent, None)
        self.hear(found)

    @precondition(lambda self: self.workers)
    @rule(choice=st.integers(0, 7), step=st.integers(0, 4), squatted=st.booleans())
    def report(self, choice: int, step: int, squatted: bool) -> None:
        """Let a worker report, in any order."""
        id_ = sorted(self.workers)[choice % len(self.workers)]
        self.hear(self.progress(id_, self.workers[id_].life, squatted=squatted)[min(step, 2)])

    @precondition(lambda self: self.workers)
    @rule(choice=st.integers(0, 7), failure=failures)
    def end(self, choice: int, failure: Failure | None) -> None:
        """End a worker for any reason."""
        id_ = sorted(self.workers)[choice % len(self.workers)]
        self.hear(TunnelEnded(id_, self.workers.pop(id_).life, failure))

    @rule(id_=agents, step=st.integers(0, 3), failure=failures)
    def report_from_an_earlier_life(self, id_: AgentId, step: int, failure: Failure | None) -> None:
        """Let a worker of the past report; that changes nothing."""
        life = self.workers[id_].life - 1 if id_ in self.workers else 1
        before = self.world

        self.hear((*self.progress(id_, life, squatted=False), TunnelEnded(id_, life, failure))[step])

        assert self.batching or self.world == before

    @rule(rules=st.sampled_from(ALL_RULES))
    def reload(self, rules: Rules) -> None:
        """Read another configuration."""
        self.hear(Reconfigured(rules))

    @rule(id_=agents)
    def retry(self, id_: AgentId) -> None:
        """Ask for the next try now."""
        self.hear(RetryRequested(id_))

    @rule(id_=agents)
    def release(self, id_: AgentId) -> None:
        """Release an agent; what was believed of its key is forgotten."""
        was = self.world.records.get(id_)
        self.hear(ReleaseRequested(id_))
        assert self.batching or was is None or was.quarantine is None or self.world.records[id_].trust is None

    @rule(seconds=st.sampled_from([0.1, 2.0, 15.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.hear()

    @rule(age=st.sampled_from([0.0, 60.0]))
    def forget(self, age: float) -> None:
        """Forget who left long ago."""
        present = self.present()
        self.hear(MemoryExpired(self.now - age))
        assert self.present() == present

    @rule(more_to_come=st.booleans())
    def batch(self, more_to_come: bool) -> None:
        """Collect events before acting, as a loop does that was held up."""
        self.batching = more_to_come
        self.hear()

    @rule()
    def let_all_succeed(self) -> None:
        """List all, and let whatever is under way succeed, so that walks get far."""
        for source in METHODS:
            self.hear(AgentsDiscovered(source, self.snapshot(source)))
        self.succeed()
        self.succeed()

    # --- what always holds ---

    @invariant()
    def keys_are_held(self) -> None:
        """Each believed key has one holder that has it; who shares one is quarantined."""
        claims: dict[str, set[AgentId]] = {}
        for id_, record in self.world.records.items():
            for one in record.trust.keys if record.present and record.trust else ():
                claims.setdefault(one, set()).add(id_)
        assert self.world.key_holders.keys() == claims.keys()
        for one, claimants in claims.items():
            assert self.world.key_holders[one] in claimants
            assert len(claimants) == 1 or all(self.world.records[id_].quarantine for id_ in claimants)

    @invariant()
    def statuses_agree_with_records(self) -> None:
        """Who is worked on has a worker or a search; all others rest in the phase that their record gives."""
        for id_, status in self.world.tunnels.items():
            record = self.world.records[id_]
            assert status.working == (id_ in self.workers or id_ in self.seekers)
            if not status.working:
                assert record.present
                assert status.phase is resting_phase(record)
                assert record.quarantine is None or status.error == record.quarantine.code
            elif status.spec is not None:
                assert status.life == self.workers[id_].life
                assert status.phase in {Phase.CONNECTING, Phase.UP, Phase.DRAINING}
        assert self.workers.keys() | self.seekers.keys() <= self.world.tunnels.keys()

    @invariant()
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

    def teardown(self) -> None:
        """Converge, drain, forget."""
        self.batching = False
        if not self.world.sources:
            return  # the walk broke before it began
        self.settle()
        self.check_converged()
        self.drain()
        self.check_forgotten()

    def settle(self) -> None:
        """List everything twice and let all work succeed."""
        for source in [*METHODS, *METHODS]:
            self.hear(AgentsDiscovered(source, self.snapshot(source)))
        for _ in range(4):
            self.now += 3600.0
            self.hear()
            self.succeed()

    def succeed(self) -> None:
        """Let every search find evidence, every worker come up, and those that were told to, end."""
        for id_, agent in list(self.seekers.items()):
            self.succeed_search(id_, agent)
        for id_, work in list(self.workers.items()):
            if work.told:
                self.hear(TunnelEnded(id_, self.workers.pop(id_).life, None))
            else:
                self.hear(*self.progress(id_, work.life, squatted=False))

    def succeed_search(self, id_: AgentId, agent: Agent) -> None:
        """Find the best evidence that the rules accept, if any."""
        del self.seekers[id_]
        method = next((one for one in METHODS[agent.source] if self.world.rules.accepts(agent, one)), None)
        if method is None:
            self.hear(EvidenceAbsent(id_, agent.incarnation, "no method may be believed"))
        else:
            self.hear(EvidenceFound(id_, agent.incarnation, HostTrust(method, (self.key_of(agent),))))

    def check_converged(self) -> None:
        """Those are up that should be, and nothing else is."""
        rules = self.world.rules
        listed = {id_: agent for id_, agent in self.fleet.items() if agent.source in rules.trust}
        assert self.present() == listed.keys()
        due = {
            id_
            for id_, agent in listed.items()
            if agent.addresses
            and self.world.records[id_].quarantine is None
            and any(rules.accepts(agent, method) for method in METHODS[agent.source])
        }
        assert {id_ for id_, status in self.world.tunnels.items() if status.phase is Phase.UP} == due
        assert self.workers.keys() == due == desired(self.world).keys()
        assert all(self.workers[id_].spec == spec for id_, spec in desired(self.world).items())

    def drain(self) -> None:
        """Stop; every worker is told, and when all are over nothing stands and nothing is due."""
        self.hear(DrainRequested())
        assert all(work.told for work in self.workers.values())
        for id_, work in list(self.workers.items()):
            del self.workers[id_]
            self.hear(TunnelEnded(id_, work.life, None))
        for id_, agent in list(self.seekers.items()):
            self.succeed_search(id_, agent)
        assert not any(status.working for status in self.world.tunnels.values())
        assert plan(self.world, math.inf) == ()
        assert next_due(self.world) is None

    def check_forgotten(self) -> None:
        """Once all are gone and the memory has expired, nothing is left of them."""
        self.fleet.clear()
        for source in [*METHODS, *METHODS]:
            self.hear(AgentsDiscovered(source, self.snapshot(source)))
        self.hear(MemoryExpired(self.now + 1))
        assert (self.world.records, self.world.tunnels, self.world.key_holders) == ({}, {}, {})

    # --- small parts ---

    def present(self) -> set[AgentId]:
        """Return who is there, as far as the world knows."""
        return {id_ for id_, record in self.world.records.items() if record.present}

    def snapshot(self, source: str) -> Snapshot:
        """Return a source's whole answer."""
        listed = frozenset(agent for agent in self.fleet.values() if agent.source == source)
        gone = frozenset(id_ for id_ in self.ended if id_.startswith(source))
        return Snapshot(listed, gone, absence_is_proof=source == "file")

    def key_of(self, agent: Agent) -> str:
        """Return the key that an agent has: its own, or one that others have too."""
        own = 100 + AGENTS.index(agent.id) * 10 + int(agent.incarnation)
        return key(self.shared.get(agent.id, own))

    @staticmethod
    def progress(id_: AgentId, life: int, *, squatted: bool) -> tuple[Event, Event, Event]:
        """Return the reports of a worker that succeeds, in order."""
        held, refused = (LISTEN[:1], LISTEN[1:]) if squatted else (LISTEN, ())
        return (
            TunnelDialled(id_, life, "10.0.0.1:22"),
            TunnelBound(id_, life, held, refused, tuple(map(str, refused))),
            TunnelProbed(id_, life, 0.01),
        )


Walk.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestWalk = Walk.TestCase
"""Every walk keeps the invariants, and from its end the world converges, drains and forgets."""
