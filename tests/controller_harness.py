"""A controller between fakes of its store, tunnels and searches, for tests of the loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.until import until
from tunnelmgr.controller import Controller, Performers
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import (
    AgentsDiscovered,
    DrainRequested,
    Event,
    EvidenceFound,
    Reconfigured,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.reconcile import CloseTunnel, OpenTunnel, Search
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase, TunnelStatus
from tunnelmgr.core.world import HistoryEntry, Record, World
from tunnelmgr.errors import StoreError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43
RULES = Rules(trust={"cloud": (Method.CONSOLE,)})


def agent(name: str) -> Agent:
    """Return an agent of the cloud."""
    return Agent(AgentId(f"cloud:{name}"), "1", "cloud", "ci", name, ("10.0.0.1",))


A, B = agent("a"), agent("b")


@dataclass
class ControllerHarness:
    """A controller between fakes that record, in one list, what they were asked to do."""

    done: list[str] = field(default_factory=list)
    store_fails: str | None = None
    now: float = 100.0
    written: set[AgentId] = field(default_factory=set)
    drops: set[AgentId] = field(default_factory=set)
    history: list[tuple[str, int]] = field(default_factory=list)
    phases: list[tuple[str, Phase | None, Phase | None]] = field(default_factory=list)
    controller: Controller = field(init=False)

    def __post_init__(self) -> None:
        self.controller = Controller(World(), self, lambda: self.now)

    def write(self, changes: Changes) -> frozenset[AgentId]:
        """Record a write, which leaves out the agents in `drops`, or fail."""
        if self.store_fails:
            self.done.append("write failed")
            raise StoreError(self.store_fails)
        self.done.append("write")
        self.written |= {record.agent.id for record in changes.records} - self.drops
        self.written -= set(changes.forgotten) - self.drops
        return frozenset(self.drops)

    def open(self, action: OpenTunnel) -> None:
        """Record an opening."""
        self.done.append(f"open {action.spec.name} {action.life}")

    def close(self, action: CloseTunnel) -> None:
        """Record a closing."""
        self.done.append(f"close {action.agent} {action.manner.name}")

    def search(self, action: Search) -> None:
        """Record a search."""
        self.done.append(f"seek {action.agent.name}")

    def history_grew(self, _record: Record, entry: HistoryEntry) -> None:
        """Keep what is new in the histories."""
        self.history.append((entry.step, entry.count))

    def phase_changed(self, record: Record, was: Phase | None, status: TunnelStatus | None) -> None:
        """Keep a change of a phase."""
        self.phases.append((record.agent.name, was, None if status is None else status.phase))

    def report(self, *events: Event) -> None:
        """Report events, all of them before the loop can take up the first."""
        for event in events:
            self.controller.report(event)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something, but not for long."""
        await until(condition, deadline=5)

    def steps(self, kind: str) -> list[str]:
        """Return what was done of one kind."""
        return [step for step in self.done if step.startswith(kind)]

    async def until_done(self, step: str) -> None:
        """Wait until this was done."""
        await self.until(lambda: step in self.done)

    async def bring_up(self, one: Agent) -> None:
        """Bring an agent up, and forget what was done for it."""
        self.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({one}))))
        await self.until_done(f"seek {one.name}")
        self.report(EvidenceFound(one.id, "1", HostTrust(Method.CONSOLE, (KEY,))))
        await self.until_done(f"open {one.name} 1")
        self.report(TunnelProbed(one.id, 1, 0.01))
        await self.until(lambda: self.controller.world.status(one.id).phase is Phase.UP)
        await self.until(lambda: self.done[-1] == "write")
        self.done.clear()


@asynccontextmanager
async def running(harness: ControllerHarness | None = None) -> AsyncIterator[ControllerHarness]:
    """Run a controller; at the end it drains, unless it has drained before."""
    harness = harness or ControllerHarness()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(harness.controller.run(Performers(harness, harness), harness), name="controller")
        try:
            yield harness
        finally:
            harness.report(DrainRequested())
            for id_, status in harness.controller.world.tunnels.items():
                harness.report(TunnelEnded(id_, status.life, None))
        await task
