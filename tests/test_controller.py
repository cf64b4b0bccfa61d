"""The loop that owns all state: the order of its actions, and how it copes with a store that fails."""

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from tests.controller_harness import KEY, OTHER_KEY, RULES, A, B, ControllerHarness, agent, running
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
    LoginKeyTested,
    Reconfigured,
    TunnelEnded,
    TunnelProbed,
)
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Phase, Seeking
from tunnelmgr.errors import Pace
from tunnelmgr.store import writer


async def test_an_agent_is_sought_written_and_dialled_in_that_order() -> None:
    """New evidence is written before its agent is dialled."""
    async with running() as harness:
        harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await harness.until_done("seek a")
        harness.report(EvidenceFound(A.id, "1", HostTrust(Method.CONSOLE, (KEY,))))
        await harness.until_done("open a 1")

        assert harness.done == ["seek a", "write", "write", "open a 1"]
        assert harness.written == {A.id}


async def test_closings_come_before_the_write_and_openings_after_it() -> None:
    """A revocation does not wait for the disk; a first dial by new evidence does."""
    async with running() as harness:
        await harness.bring_up(A)

        harness.report(AgentsDiscovered("cloud", Snapshot(frozenset({B}), gone=frozenset({A.id}))))
        await harness.until_done("write")
        harness.report(EvidenceFound(B.id, "1", HostTrust(Method.CONSOLE, (OTHER_KEY,))))
        await harness.until_done("open b 1")

        assert harness.done == ["close cloud:a REVOKE", "seek b", "write", "write", "open b 1"]


async def test_openings_and_searches_begin_a_few_at_a_time_and_closings_at_once() -> None:
    """A turn begins `MIN_OPENINGS` searches or openings, and the next turns begin all others; closings never wait."""
    fleet = [agent(f"a{number}") for number in range(10 * loop.MIN_OPENINGS)]
    async with running() as harness:
        harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset(fleet))))
        await harness.until_done("write")
        assert len(harness.steps("seek")) == loop.MIN_OPENINGS
        await harness.until(lambda: len(harness.steps("seek")) == len(fleet))

        harness.done.clear()
        for number, one in enumerate(fleet):
            harness.report(EvidenceFound(one.id, "1", HostTrust(Method.CONSOLE, (f"{KEY[:-4]}{number:04}",))))
        await harness.until_done("write")
        await harness.until(lambda: len(harness.steps("open")) == loop.MIN_OPENINGS)
        await harness.until(lambda: len(harness.steps("open")) == len(fleet))

        harness.done.clear()
        harness.report(AgentsDiscovered("cloud", Snapshot(frozenset(), gone=frozenset(one.id for one in fleet))))
        await harness.until_done("write")
        assert len(harness.steps("close")) == len(fleet)


async def test_a_large_fleet_begins_by_a_share_in_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn begins `OPENINGS_SHARE` of what is due if that is more than `MIN_OPENINGS`, so few turns serve a fleet."""
    monkeypatch.setattr(loop, "OPENINGS_SHARE", 0.5)
    fleet = [agent(f"a{number}") for number in range(10 * loop.MIN_OPENINGS)]
    async with running() as harness:
        harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset(fleet))))
        await harness.until_done("write")

        assert len(harness.steps("seek")) == len(fleet) / 2


async def test_events_that_are_queued_together_are_taken_together() -> None:
    """Events that are queued together cause one plan and one write."""
    async with running() as harness:
        harness.report(
            Reconfigured(RULES), *(AgentsDiscovered("cloud", Snapshot(frozenset({A, B}))) for _ in range(50))
        )
        await harness.until_done("seek a")
        await harness.until_done("seek b")
        await harness.until_done("write")

        assert harness.done.count("write") == 1


async def test_what_is_written_is_not_written_again() -> None:
    """A probe of a tunnel that is up causes no write."""
    async with running() as harness:
        await harness.bring_up(A)

        harness.now += 15
        harness.report(TunnelProbed(A.id, 1, 0.02))
        await harness.until(lambda: harness.controller.world.status(A.id).probe.at == harness.now)

        assert harness.done == []


async def test_the_next_try_begins_without_an_event() -> None:
    """The next try begins when its time has come by the clock."""
    async with running() as harness:
        await harness.bring_up(A)

        harness.report(TunnelEnded(A.id, 1, Failure("unreachable", Pace.SLOW, "nobody answers")))
        await harness.until(lambda: harness.controller.world.status(A.id).phase is Phase.DOWN)
        harness.now += 3600
        harness.report(EvidenceAbsent(AgentId("cloud:nobody"), "1", "wakes the loop"))

        await harness.until_done("open a 2")


async def test_the_loop_sleeps_until_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop sleeps exactly until the next try is due, without turning in between."""
    slept: list[float | None] = []
    patience = Controller._next_turn_in

    def noted(self: Controller) -> float | None:
        slept.append(patience(self))
        return 0.0 if slept[-1] else slept[-1]

    monkeypatch.setattr(Controller, "_next_turn_in", noted)
    async with running() as harness:
        await harness.bring_up(A)
        harness.report(TunnelEnded(A.id, 1, Failure("unreachable", Pace.SLOW, "nobody answers")))
        await harness.until(lambda: harness.controller.world.status(A.id).phase is Phase.DOWN)
        retry_at = harness.controller.world.status(A.id).retry_at
        await harness.until(lambda: slept[-1] is not None)

        assert retry_at is not None
        assert slept[-1] == pytest.approx(retry_at - harness.now)
        harness.now = retry_at
        await harness.until_done("open a 2")


# --- a store that fails ---


async def test_tunnels_continue_while_writes_fail() -> None:
    """While writes fail, tunnels open and close, `store_error` says why, and the log has one line."""
    with capture_logs() as logs:
        async with running() as harness:
            harness.store_fails = "state.db: database or disk is full"
            harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
            await harness.until_done("seek a")
            harness.report(EvidenceFound(A.id, "1", HostTrust(Method.CONSOLE, (KEY,))))
            await harness.until_done("open a 1")

            assert harness.controller.store_error == "state.db: database or disk is full"
            assert harness.written == set()
            harness.store_fails = None

    events = [entry["event"] for entry in logs if "state" in str(entry["event"])]
    assert events == ["state write failed", "state write recovered"]


async def test_a_store_that_recovers_gets_everything_that_it_missed() -> None:
    """The first write that succeeds after failures contains every change since the last success."""
    async with running() as harness:
        harness.store_fails = "full"
        harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await harness.until(lambda: harness.controller.store_error == "full")

        harness.store_fails = None
        harness.report(AgentsDiscovered("cloud", Snapshot(frozenset({A, B}))))
        await harness.until(lambda: harness.written == {A.id, B.id})
        await harness.until(lambda: harness.controller.store_error is None)


async def test_a_failed_write_is_tried_again_without_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that failed is tried again after a while, even if nothing else changes."""
    monkeypatch.setattr(writer, "RETRY", 0.01)
    async with running() as harness:
        harness.store_fails = "full"
        harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await harness.until(lambda: harness.done.count("write failed") > 2)

        harness.store_fails = None

        await harness.until_done("write")
        assert harness.written == {A.id}


# --- the end ---


async def test_a_drain_ends_when_every_tunnel_has_ended() -> None:
    """The loop drains all tunnels, and returns when they have ended and everything is written."""
    harness = ControllerHarness()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(harness.controller.run(Performers(harness, harness), harness), name="controller")
        await harness.bring_up(A)
        harness.report(DrainRequested())
        await harness.until_done("close cloud:a DRAIN")
        still_running = not task.done()
        harness.report(TunnelEnded(A.id, 1, None))
        await task

    assert still_running
    assert harness.done[-1] == "write"
    assert harness.controller.world.records[A.id].history[-1].step == "closed"


async def test_a_drain_without_tunnels_returns_at_once() -> None:
    """A drain does not wait for a search for evidence."""
    harness = ControllerHarness()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(harness.controller.run(Performers(harness, harness), harness), name="controller")
        harness.report(Reconfigured(RULES), AgentsDiscovered("cloud", Snapshot(frozenset({A}))))
        await harness.until_done("seek a")
        harness.report(DrainRequested())
        await task

    assert isinstance(harness.controller.world.status(A.id), Seeking)


# --- what is logged ---


async def test_each_change_of_phase_is_one_log_line() -> None:
    """Each change of phase is one log line with the agent and the error, and is passed on with the phase before."""
    with capture_logs() as logs:
        async with running() as harness:
            await harness.bring_up(A)
            harness.report(TunnelEnded(A.id, 1, Failure("host-key-mismatch", Pace.NEVER, "another key")))
            await harness.until(lambda: harness.controller.world.status(A.id).phase is Phase.QUARANTINED)
            harness.report(AgentsDiscovered("cloud", Snapshot(frozenset(), gone=frozenset({A.id}))))
            await harness.until(lambda: A.id not in harness.controller.world.tunnels)

    events = [(entry["log_level"], entry.get("phase", entry["event"])) for entry in logs if entry.get("agent") == A.id]
    assert events == [
        ("info", "awaiting-identity"),
        ("info", "down"),
        ("info", "connecting"),
        ("info", "up"),
        ("error", "quarantined"),
        ("info", "agent removed"),
    ]
    assert [(was, now) for _, was, now in harness.phases] == [
        (None, Phase.AWAITING_IDENTITY),
        (Phase.AWAITING_IDENTITY, Phase.DOWN),
        (Phase.DOWN, Phase.CONNECTING),
        (Phase.CONNECTING, Phase.UP),
        (Phase.UP, Phase.QUARANTINED),
        (Phase.QUARANTINED, None),
    ]


def test_the_clock_returns_the_time_and_never_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock follows the monotonic clock, regardless of changes to the wall clock."""
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
    async with running() as harness:
        await harness.bring_up(A)
        turns.clear()
        for took in (0.1, 0.2, 0.3):
            harness.report(TunnelProbed(A.id, 1, took))
            await asyncio.sleep(0)
        assert turns == []

        harness.report(TunnelEnded(A.id, 1, Failure("lost", Pace.SOON, "gone")))
        await harness.until(lambda: harness.controller.world.status(A.id).phase is not Phase.UP)
        assert turns[0] == 4


async def test_reports_of_progress_are_batched_by_the_duration_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes reports of progress in one turn with the next urgent event if its last turn was long."""
    turns: list[int] = []
    apply = Controller._apply

    def counted(self: Controller, events: list[Event]) -> None:
        turns.append(len(events))
        apply(self, events)

    async with running() as harness:
        await harness.bring_up(A)
        await harness.until(lambda: harness.controller.has_written)
        harness.controller._inbox.take()  # the end of a write ends the next wait
        monkeypatch.setattr(loop, "REPORT_BATCHING", 60.0)
        monkeypatch.setattr(Controller, "_apply", counted)
        harness.controller._turn_seconds = 60.0
        for excess in (("run commands",), ()):
            harness.report(LoginKeyTested(A.id, 1, excess))
            await asyncio.sleep(0)
        assert turns == []

        harness.report(Reconfigured(RULES))
        await harness.until(lambda: bool(turns))
        assert turns[0] == 3


async def test_batching_of_probes_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop takes a probe after `PROBE_BATCHING` seconds even if no other event comes."""
    async with running() as harness:
        await harness.bring_up(A)
        monkeypatch.setattr(loop, "PROBE_BATCHING", 0.05)
        harness.report(TunnelProbed(A.id, 1, 0.25))
        await harness.until(lambda: harness.controller.world.status(A.id).probe.ms == 250.0)


async def test_an_incomplete_listing_is_logged_once_and_its_end_too() -> None:
    """The log has one line when a listing begins to lack agents and one when it is complete again."""

    def listed(harness: ControllerHarness, *listed: Agent) -> None:
        harness.report(AgentsDiscovered("cloud", Snapshot(frozenset(listed))))

    with capture_logs() as logs:
        async with running() as harness:
            view = lambda: harness.controller.world.sources["cloud"]  # noqa: E731 - read again each time
            harness.report(Reconfigured(RULES))
            listed(harness, A)
            await harness.until_done("seek a")
            for _ in range(2):
                listed(harness)
                await harness.until(lambda: view().missing == 1)
                harness.now += 1
                listed(harness)
                harness.report(DiscoveryFailed("cloud", "throttled"))
                await harness.until(lambda: view().error == "throttled")
            listed(harness, A)
            await harness.until(lambda: view().missing == 0)

    events = [(entry["event"], entry.get("missing")) for entry in logs if entry["event"].startswith("listing")]
    assert events == [("listing incomplete", 1), ("listing complete", None)]


async def test_a_repeated_failure_is_logged_and_written_less_and_less_often() -> None:
    """Of an agent's repeated failures fewer and fewer are logged and audited, and they are written once a minute."""
    harness = ControllerHarness()
    with capture_logs() as logs:
        async with running(harness):
            await harness.bring_up(A)
            harness.history.clear()
            logs.clear()
            for life in range(1, 20):
                harness.report(TunnelEnded(A.id, life, Failure("unreachable", Pace.SOON, "nobody answers")))
                await harness.until(lambda: harness.controller.world.status(A.id).phase is Phase.DOWN)
                harness.now += 5
                harness.report(EvidenceAbsent(AgentId("cloud:nobody"), "1", "wakes the loop"))
                await harness.until_done(f"open a {life + 1}")
            written = harness.done.count("write")
            phases = [entry["phase"] for entry in logs if entry["event"] == "phase changed"]

    assert [step for step in harness.history if step[0] != "closed"] == [
        ("lost", 1),
        *(("failed", 2**power) for power in range(5)),
    ]
    assert phases == ["down", "connecting"] * 6
    # The first two failures, and then once a minute of the one and a half that pass.
    assert written < 6
