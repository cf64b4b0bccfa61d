"""The loop that owns all state: in what order it acts, and how it bears a store that fails."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from tunnelmgr import controller as loop
from tunnelmgr.controller import Clock, Controller, Performers
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import (
    AgentsDiscovered,
    DiscoveryFailed,
    DrainRequested,
    Event,
    EvidenceAbsent,
    EvidenceFound,
    Reconfigured,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.persistence import Changes
from tunnelmgr.core.reconcile import CloseTunnel, OpenTunnel, Search
from tunnelmgr.core.rules import Rules
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase, Seeking
from tunnelmgr.core.world import HistoryEntry, Record, World
from tunnelmgr.errors import Pace, StoreError
from tunnelmgr.store import writer

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43
RULES = Rules(trust={"cloud": (Method.CONSOLE,)})


def agent(name: str) -> Agent:
    """Return an agent of the cloud."""
    return Agent(AgentId(f"cloud:{name}"), "1", "cloud", "ci", name, ("10.0.0.1",))


A, B = agent("a"), agent("b")


@dataclass
class House:
    """A controller between fakes that note, in one list, what they were told."""

    done: list[str] = field(default_factory=list)
    store_fails: str | None = None
    now: float = 100.0
    written: set[AgentId] = field(default_factory=set)
    history: list[tuple[str, int]] = field(default_factory=list)
    controller: Controller = field(init=False)

    def __post_init__(self) -> None:
        self.controller = Controller(World(), self, lambda: self.now)

    def write(self, changes: Changes) -> None:
        """Write down, or fail."""
        if self.store_fails:
            self.done.append("write failed")
            raise StoreError(self.store_fails)
        self.done.append("write")
        self.written |= {record.agent.id for record in changes.records}
        self.written -= set(changes.forgotten)

    def open(self, action: OpenTunnel) -> None:
        """Note an opening."""
        self.done.append(f"open {action.spec.name} {action.life}")

    def close(self, action: CloseTunnel) -> None:
        """Note a closing."""
        self.done.append(f"close {action.agent} {action.manner.name}")

    def search(self, action: Search) -> None:
        """Note a search."""
        self.done.append(f"seek {action.agent.name}")

    def history_grew(self, _record: Record, entry: HistoryEntry) -> None:
        """Keep what is new in the histories."""
        self.history.append((entry.step, entry.count))

    def report(self, *events: Event) -> None:
        """Report events, all of them before the loop can take up the first."""
        for event in events:
            self.controller.report(event)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something, but not for long."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - any condition of the fakes, with a deadline
                await asyncio.sleep(0.001)

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
async def running(house: House | None = None) -> AsyncIterator[House]:
    """Run a controller; at the end it drains, unless it has drained before."""
    house = house or House()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(house.controller.run(Performers(house, house), house), name="controller")
        try:
            yield house
        finally:
            house.report(DrainRequested())
            for id_, status in house.controller.world.tunnels.items():
                house.report(TunnelEnded(id_, status.life, None))
        await task


async def test_an_agent_is_sought_written_and_dialled_in_that_order() -> None:
    """New evidence is written before its agent is dialled."""
    async with running() as house:
        house.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await house.until_done("seek a")
        house.report(EvidenceFound(A.id, "1", HostTrust(Method.CONSOLE, (KEY,))))
        await house.until_done("open a 1")

        assert house.done == ["seek a", "write", "write", "open a 1"]
        assert house.written == {A.id}


async def test_closings_come_before_the_write_and_openings_after_it() -> None:
    """A revocation does not wait for the disk; a first dial by new evidence does."""
    async with running() as house:
        await house.bring_up(A)

        house.report(AgentsDiscovered("cloud", Snapshot(frozenset({B}), gone=frozenset({A.id}))))
        await house.until_done("write")
        house.report(EvidenceFound(B.id, "1", HostTrust(Method.CONSOLE, (OTHER_KEY,))))
        await house.until_done("open b 1")

        assert house.done == ["close cloud:a REVOKE", "seek b", "write", "write", "open b 1"]


async def test_openings_and_searches_begin_a_few_at_a_time_and_closings_at_once() -> None:
    """A turn begins `MIN_OPENINGS` searches or openings, and the next turns begin all others; closings never wait."""
    fleet = [agent(f"a{number}") for number in range(10 * loop.MIN_OPENINGS)]
    async with running() as house:
        house.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset(fleet))))
        await house.until_done("write")
        assert len(house.steps("seek")) == loop.MIN_OPENINGS
        await house.until(lambda: len(house.steps("seek")) == len(fleet))

        house.done.clear()
        for number, one in enumerate(fleet):
            house.report(EvidenceFound(one.id, "1", HostTrust(Method.CONSOLE, (f"{KEY[:-4]}{number:04}",))))
        await house.until_done("write")
        await house.until(lambda: len(house.steps("open")) == loop.MIN_OPENINGS)
        await house.until(lambda: len(house.steps("open")) == len(fleet))

        house.done.clear()
        house.report(AgentsDiscovered("cloud", Snapshot(frozenset(), gone=frozenset(one.id for one in fleet))))
        await house.until_done("write")
        assert len(house.steps("close")) == len(fleet)


async def test_a_large_fleet_begins_by_a_share_in_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn begins `OPENINGS_SHARE` of what is due if that is more than `MIN_OPENINGS`, so few turns serve a fleet."""
    monkeypatch.setattr(loop, "OPENINGS_SHARE", 0.5)
    fleet = [agent(f"a{number}") for number in range(10 * loop.MIN_OPENINGS)]
    async with running() as house:
        house.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset(fleet))))
        await house.until_done("write")

        assert len(house.steps("seek")) == len(fleet) / 2


async def test_events_that_are_queued_together_are_taken_together() -> None:
    """Events that are queued together cause one plan and one write."""
    async with running() as house:
        house.report(Reconfigured(RULES), *(AgentsDiscovered("cloud", Snapshot(frozenset({A, B}))) for _ in range(50)))
        await house.until_done("seek a")
        await house.until_done("seek b")
        await house.until_done("write")

        assert house.done.count("write") == 1


async def test_what_is_written_is_not_written_again() -> None:
    """A probe of a tunnel that is up causes no write."""
    async with running() as house:
        await house.bring_up(A)

        house.now += 15
        house.report(TunnelProbed(A.id, 1, 0.02))
        await house.until(lambda: house.controller.world.status(A.id).probe.at == house.now)

        assert house.done == []


async def test_the_next_try_begins_without_an_event() -> None:
    """The next try begins when its time has come by the clock."""
    async with running() as house:
        await house.bring_up(A)

        house.report(TunnelEnded(A.id, 1, Failure("unreachable", Pace.SLOW, "nobody answers")))
        await house.until(lambda: house.controller.world.status(A.id).phase is Phase.DOWN)
        house.now += 3600
        house.report(EvidenceAbsent(AgentId("cloud:nobody"), "1", "wakes the loop"))

        await house.until_done("open a 2")


async def test_the_loop_sleeps_until_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop sleeps exactly until the next try is due, without turning in between."""
    slept: list[float | None] = []
    patience = Controller._next_turn_in

    def noted(self: Controller) -> float | None:
        slept.append(patience(self))
        return 0.0 if slept[-1] else slept[-1]

    monkeypatch.setattr(Controller, "_next_turn_in", noted)
    async with running() as house:
        await house.bring_up(A)
        house.report(TunnelEnded(A.id, 1, Failure("unreachable", Pace.SLOW, "nobody answers")))
        await house.until(lambda: house.controller.world.status(A.id).phase is Phase.DOWN)
        retry_at = house.controller.world.status(A.id).retry_at
        await house.until(lambda: slept[-1] is not None)

        assert retry_at is not None
        assert slept[-1] == pytest.approx(retry_at - house.now)
        house.now = retry_at
        await house.until_done("open a 2")


# --- a store that fails ---


async def test_tunnels_continue_while_writes_fail() -> None:
    """While writes fail, tunnels open and close, `store_error` says why, and the log has one line."""
    with capture_logs() as logs:
        async with running() as house:
            house.store_fails = "state.db: database or disk is full"
            house.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
            await house.until_done("seek a")
            house.report(EvidenceFound(A.id, "1", HostTrust(Method.CONSOLE, (KEY,))))
            await house.until_done("open a 1")

            assert house.controller.store_error == "state.db: database or disk is full"
            assert house.written == set()
            house.store_fails = None

    told = [entry["event"] for entry in logs if "state" in str(entry["event"])]
    assert told == ["state write failed", "state write recovered"]


async def test_a_store_that_recovers_gets_everything_that_it_missed() -> None:
    """The first write that succeeds after failures contains every change since the last success."""
    async with running() as house:
        house.store_fails = "full"
        house.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await house.until(lambda: house.controller.store_error == "full")

        house.store_fails = None
        house.report(AgentsDiscovered("cloud", Snapshot(frozenset({A, B}))))
        await house.until(lambda: house.written == {A.id, B.id})
        await house.until(lambda: house.controller.store_error is None)


async def test_a_failed_write_is_tried_again_without_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that failed is tried again after a while, even if nothing else changes."""
    monkeypatch.setattr(writer, "RETRY", 0.01)
    async with running() as house:
        house.store_fails = "full"
        house.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await house.until(lambda: house.done.count("write failed") > 2)

        house.store_fails = None

        await house.until_done("write")
        assert house.written == {A.id}


# --- the end ---


async def test_a_drain_ends_when_every_tunnel_has_ended() -> None:
    """The loop drains all tunnels, and returns when they have ended and everything is written."""
    house = House()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(house.controller.run(Performers(house, house), house), name="controller")
        await house.bring_up(A)
        house.report(DrainRequested())
        await house.until_done("close cloud:a DRAIN")
        still_running = not task.done()
        house.report(TunnelEnded(A.id, 1, None))
        await task

    assert still_running
    assert house.done[-1] == "write"
    assert house.controller.world.records[A.id].history[-1].step == "closed"


async def test_a_drain_without_tunnels_returns_at_once() -> None:
    """A drain does not wait for a search for evidence."""
    house = House()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(house.controller.run(Performers(house, house), house), name="controller")
        house.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await house.until_done("seek a")
        house.report(DrainRequested())
        await task

    assert isinstance(house.controller.world.status(A.id), Seeking)


# --- what is told ---


async def test_each_change_of_phase_is_one_log_line() -> None:
    """Each change of phase is one log line with the agent, the phase before, and the error."""
    with capture_logs() as logs:
        async with running() as house:
            await house.bring_up(A)
            house.report(TunnelEnded(A.id, 1, Failure("host-key-mismatch", Pace.NEVER, "another key")))
            await house.until(lambda: house.controller.world.status(A.id).phase is Phase.QUARANTINED)
            house.report(AgentsDiscovered("cloud", Snapshot(frozenset(), gone=frozenset({A.id}))))
            await house.until(lambda: A.id not in house.controller.world.tunnels)

    told = [(entry["log_level"], entry.get("phase", entry["event"])) for entry in logs if entry.get("agent") == A.id]
    assert told == [
        ("info", "awaiting-identity"),
        ("info", "down"),
        ("info", "connecting"),
        ("info", "up"),
        ("error", "quarantined"),
        ("info", "agent removed"),
    ]


def test_the_clock_returns_the_time_and_never_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock follows the monotonic clock, whatever happens to the wall clock in the meantime."""
    clock = Clock()
    first = clock()

    monkeypatch.setattr(time, "time", lambda: 0.0)

    assert first == pytest.approx(clock(), abs=5)


async def test_probes_of_tunnels_that_are_up_are_batched_until_another_event_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop takes probes of tunnels that are up in one turn with the next event of another kind."""
    turns: list[int] = []
    apply = Controller._apply

    def counted(self: Controller, events: list[Event]) -> None:
        turns.append(len(events))
        apply(self, events)

    monkeypatch.setattr(Controller, "_apply", counted)
    monkeypatch.setattr(loop, "PROBE_BATCHING", 60.0)
    async with running() as house:
        await house.bring_up(A)
        turns.clear()
        for took in (0.1, 0.2, 0.3):
            house.report(TunnelProbed(A.id, 1, took))
            await asyncio.sleep(0)
        assert turns == []

        house.report(TunnelEnded(A.id, 1, Failure("lost", Pace.SOON, "gone")))
        await house.until(lambda: house.controller.world.status(A.id).phase is not Phase.UP)
        assert turns[0] == 4


async def test_batching_of_probes_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes a probe after `PROBE_BATCHING` seconds even if no other event comes."""
    async with running() as house:
        await house.bring_up(A)
        monkeypatch.setattr(loop, "PROBE_BATCHING", 0.05)
        house.report(TunnelProbed(A.id, 1, 0.25))
        await house.until(lambda: house.controller.world.status(A.id).probe.ms == 250.0)


async def test_an_incomplete_listing_is_logged_once_and_its_end_too() -> None:
    """The log has one line when a listing begins to lack agents and one when it is complete again."""

    def listed(house: House, *listed: Agent) -> None:
        house.report(AgentsDiscovered("cloud", Snapshot(frozenset(listed))))

    with capture_logs() as logs:
        async with running() as house:
            view = lambda: house.controller.world.sources["cloud"]  # noqa: E731 - read again each time
            house.report(Reconfigured(RULES))
            listed(house, A)
            await house.until_done("seek a")
            for _ in range(2):
                listed(house)
                await house.until(lambda: view().missing == 1)
                house.now += 1
                listed(house)
                house.report(DiscoveryFailed("cloud", "throttled"))
                await house.until(lambda: view().error == "throttled")
            listed(house, A)
            await house.until(lambda: view().missing == 0)

    told = [(entry["event"], entry.get("missing")) for entry in logs if entry["event"].startswith("listing")]
    assert told == [("listing incomplete", 1), ("listing complete", None)]


async def test_a_repeated_failure_is_logged_and_written_less_and_less_often() -> None:
    """Of an agent's repeated failures fewer and fewer are logged and audited, and they are written once a minute."""
    house = House()
    with capture_logs() as logs:
        async with running(house):
            await house.bring_up(A)
            house.history.clear()
            logs.clear()
            for life in range(1, 20):
                house.report(TunnelEnded(A.id, life, Failure("unreachable", Pace.SOON, "nobody answers")))
                await house.until(lambda: house.controller.world.status(A.id).phase is Phase.DOWN)
                house.now += 5
                house.report(EvidenceAbsent(AgentId("cloud:nobody"), "1", "wakes the loop"))
                await house.until_done(f"open a {life + 1}")
            written = house.done.count("write")
            phases = [entry["phase"] for entry in logs if entry["event"] == "phase changed"]

    assert [step for step in house.history if step[0] != "closed"] == [
        ("lost", 1),
        *(("failed", 2**power) for power in range(5)),
    ]
    assert phases == ["down", "connecting"] * 6
    # The first two failures, and then once a minute of the one and a half that pass.
    assert written < 6
