"""Where every walk ends: what is desired comes up, a drain ends everything, and what is gone is forgotten."""

import math

from tests.core.walks.fleet import SOURCES
from tests.core.walks.performer import Performer
from tunnelmgr.core.events import DrainRequested, RetentionExpired, StopRequested, TunnelEnded
from tunnelmgr.core.missing_agents import LONGEST_GRACE
from tunnelmgr.core.reconcile import desired, next_due, plan
from tunnelmgr.core.tunnel import Phase, Resting


def settle(performer: Performer) -> None:
    """List everything twice, long enough apart, and let all work succeed."""
    performer.batching = False
    for source in SOURCES * 2:
        performer.list_source(source)
        performer.now += LONGEST_GRACE
    for _ in range(4):
        performer.now += 3600.0
        performer.receive()
        performer.succeed()


def check_converged(performer: Performer) -> None:
    """Check that exactly the desired tunnels are up."""
    rules = performer.world.rules
    listed = {id_: agent for id_, agent in performer.fleet.agents.items() if agent.source in rules.trust}
    assert performer.present() == listed.keys()
    due = {
        id_
        for id_, agent in listed.items()
        if agent.addresses and performer.world.records[id_].quarantine is None and performer.believable(agent)
    }
    assert {id_ for id_, status in performer.world.tunnels.items() if status.phase is Phase.UP} == due
    assert performer.workers.keys() == due == desired(performer.world).keys()
    assert all(performer.workers[id_].spec == spec for id_, spec in desired(performer.world).items())


def drain(performer: Performer) -> None:
    """Drain: every worker is asked to end, and when all have ended, nothing stands and nothing is due.

    A stop that is requested once more changes nothing.
    """
    performer.batching = False
    performer.receive(DrainRequested(), StopRequested())
    assert all(work.asked for work in performer.workers.values())
    for id_, work in list(performer.workers.items()):
        del performer.workers[id_]
        performer.receive(TunnelEnded(id_, work.life, None))
    for id_, agent in list(performer.seekers.items()):
        performer.succeed_search(id_, agent)
    for id_ in list(performer.examinations):
        performer.receive(performer.examined(id_, reachable=True))
    assert all(isinstance(status, Resting) for status in performer.world.tunnels.values())
    assert plan(performer.world, math.inf) == ()
    assert next_due(performer.world) is None


def forget_all(performer: Performer) -> None:
    """End all machines and everything under way, and let the retention expire."""
    performer.batching = False
    performer.fleet.agents.clear()
    for source in SOURCES * 2:
        performer.list_source(source)
        performer.now += LONGEST_GRACE
    performer.succeed()
    performer.receive(RetentionExpired(performer.now + 1))
