"""The time that `plan` and `evolve` take with 5,000 agents; the bar is a plan in under 10 ms.

The loop plans once for each batch of events, so a plan's time bounds how soon a new agent can be dialled. As in the
controller, a plan begins a part of what is due.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

from tunnelmgr.controller import MIN_OPENINGS, OPENINGS_SHARE
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import AgentsDiscovered, DrainRequested, Event, EvidenceFound, Reconfigured, TunnelProbed
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.reconcile import Admit, begin, first_in_order, plan
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.core.world import World

AGENTS = 5_000
RUNS = 50
BAR = 10.0
"""Milliseconds."""

SOME: Admit = partial(first_in_order, max(MIN_OPENINGS, int(AGENTS * OPENINGS_SHARE)))
"""What the controller begins in one turn."""
FORWARD = Forward("registry", (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000)), Endpoint("127.0.0.1", 5000))
RULES = Rules((FORWARD,), {"cloud": (Method.CONSOLE,)})


def agent(number: int) -> Agent:
    """Return one agent of the fleet."""
    name = f"i-{number:017x}"
    labels = (("Name", f"builder-{number}"), ("role", "ci"), ("tunnelmgr:zone", "eu-west-1a"))
    return Agent(AgentId(f"ec2:{name}"), name, "cloud", "ci", name, (f"10.0.{number >> 8}.{number & 255}",), 22, labels)


FLEET = tuple(agent(number) for number in range(AGENTS))


def fleet() -> AgentsDiscovered:
    """Return a source's answer, created again as in every poll."""
    return AgentsDiscovered("cloud", Snapshot(frozenset(agent(number) for number in range(AGENTS))))


def evidence() -> Iterable[Event]:
    """Return a key for each agent."""
    for number, one in enumerate(FLEET):
        yield EvidenceFound(one.id, one.incarnation, HostTrust(Method.CONSOLE, (f"ssh-ed25519 {number:08d}",)))


def after(world: World, *events: Event) -> World:
    """Return the world after these events, with the planned actions under way."""
    for event in events:
        world = evolve(world, event, 1.0)
    return begin(world, plan(world, 1.0), 1.0)


def measure(what: str, act: Callable[[], object]) -> float:
    """Print how long something takes, in milliseconds; return the median."""
    act()
    took = []
    for _ in range(RUNS):
        started = time.perf_counter()
        act()
        took.append((time.perf_counter() - started) * 1000)
    median = statistics.median(took)
    print(f"{what:58} {median:8.2f} {min(took):8.2f} {max(took):8.2f}")
    return median


def main() -> None:
    """Measure, from an empty world to one that is up and drained."""
    print(f"{f'{AGENTS} agents, {RUNS} runs; milliseconds':58} {'median':>8} {'min':>8} {'max':>8}")
    empty = evolve(World(), Reconfigured(RULES), 0.0)
    snapshot, probe = fleet(), TunnelProbed(FLEET[7].id, 1, 0.02)
    new = evolve(empty, snapshot, 1.0)
    proved = after(empty, snapshot)
    for event in evidence():
        proved = evolve(proved, event, 1.0)
    up = after(proved, *(TunnelProbed(one.id, 1, 0.02) for one in FLEET))
    for one in FLEET:
        up = evolve(up, TunnelProbed(one.id, 1, 0.02), 1.0)
    draining = evolve(up, DrainRequested(), 2.0)
    plans = [
        measure("plan: all are new, evidence is needed", lambda: plan(new, 2.0, SOME)),
        measure("plan: all have evidence and need a dial", lambda: plan(proved, 2.0, SOME)),
        measure("plan: all are up, nothing to do", lambda: plan(up, 2.0, SOME)),
        measure("plan: all are up and must be drained", lambda: plan(draining, 2.0, SOME)),
    ]
    measure("evolve: the first snapshot", lambda: evolve(empty, snapshot, 2.0))
    measure("evolve: the same snapshot again", lambda: evolve(up, snapshot, 2.0))
    measure("evolve: a probe", lambda: evolve(up, probe, 2.0))
    worst = max(plans)
    print(f"the slowest plan takes {worst:.2f} ms: {'under' if worst < BAR else 'OVER'} the bar of {BAR:g} ms")


if __name__ == "__main__":
    main()
