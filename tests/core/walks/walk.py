"""A random walk over all events: one step may be anything that can happen."""

import random
from collections.abc import Callable
from dataclasses import replace

from tests.core.walks import invariants
from tests.core.walks.fleet import AGENTS, METHODS, SOURCES, Fleet, key, sorted_by_id
from tests.core.walks.performer import LISTEN, Performer, progress
from tunnelmgr.core.events import (
    AgentsDiscovered,
    DiscoveryFailed,
    EvidenceAbsent,
    EvidenceFound,
    Reconfigured,
    ReleaseRequested,
    RetentionExpired,
    RetryRequested,
    StopRequested,
    TunnelEnded,
)
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.reconcile import desired
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.errors import Pace

FORWARDS = (Forward("registry", LISTEN, Endpoint("127.0.0.1", 5000)),)
ALL_RULES = (
    Rules(FORWARDS, METHODS, {"strict": Method.CONSOLE}),
    Rules(FORWARDS, METHODS, {"strict": Method.AUTHORITY}),
    Rules((), METHODS, {}),
    Rules(FORWARDS, {"cloud": (Method.CONSOLE,)}, {}),
)

FAILURES = (None, *(Failure(pace.value, pace, f"it fails {pace}") for pace in Pace))


class Walk:
    """A fleet, two sources that list it completely or in part, and a performer."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - the dice of a game
        self.fleet = Fleet(self.dice)
        self.performer = Performer(self.fleet)
        self.performer.receive(Reconfigured(ALL_RULES[0]))

    def go(self, steps: int) -> None:
        """Take this many steps, and check the invariants after each."""
        for _ in range(steps):
            (step,) = self.dice.choices([name for name, _ in STEPS], [weight for _, weight in STEPS])
            step(self)
            invariants.check(self.performer)

    def launch(self) -> None:
        """Start, rebuild or move a machine."""
        self.fleet.launch()

    def terminate(self) -> None:
        """End a machine; its source says so at the next answer."""
        self.fleet.terminate()

    def vanish(self) -> None:
        """End a machine without a report."""
        self.fleet.vanish()

    def list_whole(self) -> None:
        """Give a complete answer; only agents that have ended or were missed before may leave."""
        source = self.dice.choice(SOURCES)
        before = self.performer.present()
        missed = {id_ for id_ in before if self.performer.world.records[id_].missed}

        self.performer.list_source(source)

        left = before - self.performer.present()
        assert left <= self.fleet.ended | missed or source == "file"
        assert all(id_ not in self.fleet.agents for id_ in left)

    def list_partly(self) -> None:
        """Give a partial answer; absence from it removes no agent."""
        source = self.dice.choice(SOURCES)
        before, whole = self.performer.present(), self.fleet.snapshot(source)
        partial = frozenset(agent for agent in sorted_by_id(whole.agents) if self.dice.random() < 0.5)

        self.performer.receive(AgentsDiscovered(source, replace(whole, agents=partial, failures=("half of it",))))

        assert before - self.performer.present() <= whole.gone

    def fail_to_list(self) -> None:
        """Fail to answer, which changes neither the presence of agents nor the desired tunnels."""
        before, wanted = self.performer.present(), desired(self.performer.world)

        self.performer.receive(DiscoveryFailed(self.dice.choice(SOURCES), "throttled"))

        assert self.performer.present() == before
        assert desired(self.performer.world) == wanted

    def answer_search(self) -> None:
        """End a search with evidence of any kind, or without."""
        if not self.performer.seekers:
            return
        id_ = self.dice.choice(sorted(self.performer.seekers))
        agent = self.performer.seekers.pop(id_)
        method = self.dice.choice((*METHODS[agent.source], *METHODS[agent.source], *Method, None))
        if method is None:
            self.performer.receive(EvidenceAbsent(id_, agent.incarnation, "no host key block yet"))
            return
        found = EvidenceFound(id_, agent.incarnation, HostTrust(method, self.fleet.named_for(agent)))
        self.performer.old_evidence.append(found)
        self.performer.receive(found)

    def answer_examination(self) -> None:
        """Let an agent in dispute show its key, or nothing."""
        if self.performer.examinations:
            id_ = self.dice.choice(sorted(self.performer.examinations))
            self.performer.receive(self.performer.examined(id_, reachable=self.dice.random() < 0.7))

    def repeat_old_evidence(self) -> None:
        """Repeat old evidence; a search that is under way ends with it, as far as the world knows."""
        if self.performer.old_evidence:
            found = self.dice.choice(self.performer.old_evidence)
            self.performer.seekers.pop(found.agent, None)
            known = self.performer.world.records.get(found.agent)
            self.performer.receive(found)
            if known and known.trust and self.performer.world.rules.accepts(known.agent, known.trust.method):
                assert self.performer.world.records[found.agent].trust == known.trust, "what was found first stays"

    def report(self) -> None:
        """Let a worker report anything, in any order."""
        if self.performer.workers:
            id_ = self.dice.choice(sorted(self.performer.workers))
            conflicts, work = self.dice.random() < 0.3, self.performer.workers[id_]
            if work.fits:
                self.performer.receive(self.dice.choice(progress(id_, work.life, work.key, conflicts=conflicts)))

    def end(self) -> None:
        """End a worker for any reason."""
        if self.performer.workers:
            id_ = self.dice.choice(sorted(self.performer.workers))
            self.performer.receive(TunnelEnded(id_, self.performer.workers.pop(id_).life, self.dice.choice(FAILURES)))

    def report_from_an_earlier_life(self) -> None:
        """Let a worker of the past report; that changes nothing."""
        id_ = self.dice.choice(AGENTS)
        life = self.performer.workers[id_].life - 1 if id_ in self.performer.workers else 1
        reports = (
            *progress(id_, life, key(0), conflicts=False),
            TunnelEnded(id_, life, self.dice.choice(FAILURES)),
        )
        before = self.performer.world

        self.performer.receive(self.dice.choice(reports))

        assert self.performer.batching or self.performer.world == before

    def reload(self) -> None:
        """Read another configuration."""
        self.performer.receive(Reconfigured(self.dice.choice((ALL_RULES[0], *ALL_RULES))))

    def retry(self) -> None:
        """Request the next try now."""
        self.performer.receive(RetryRequested(self.dice.choice(AGENTS)))

    def release(self) -> None:
        """Release an agent; its evidence is forgotten."""
        id_ = self.dice.choice(AGENTS)
        was = self.performer.world.records.get(id_)

        self.performer.receive(ReleaseRequested(id_, "looked at"))

        assert was is None or was.quarantine is None or self.performer.world.records[id_].trust is None

    def stop(self) -> None:
        """Request a stop; until the drain, that changes nothing that is desired."""
        wanted = desired(self.performer.world)

        self.performer.receive(StopRequested())

        assert desired(self.performer.world) == wanted

    def wait(self) -> None:
        """Let time pass."""
        self.performer.now += self.dice.choice((0.1, 2.0, 15.0, 3600.0))
        self.performer.receive()

    def forget(self) -> None:
        """Forget agents that left long ago."""
        present = self.performer.present()

        self.performer.receive(RetentionExpired(self.performer.now - self.dice.choice((0.0, 60.0))))

        assert self.performer.present() == present

    def batch(self) -> None:
        """Collect events before acting, as a delayed loop does, or act after each one again."""
        self.performer.batching = not self.performer.batching
        self.performer.receive()

    def let_all_succeed(self) -> None:
        """List all, and let everything under way succeed, so that walks reach late states."""
        for source in SOURCES:
            self.performer.list_source(source)
        self.performer.succeed()
        self.performer.succeed()


STEPS: tuple[tuple[Callable[[Walk], None], int], ...] = (
    (Walk.launch, 6),
    (Walk.stop, 1),
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
