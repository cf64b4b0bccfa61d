"""Polling a source: one poll at a time, with a deadline, and a failure keeps the last snapshot."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from tests.discovery.recorded_events import RecordedEvents
from tunnelmgr.config import SourceConfig
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.events import AgentsDiscovered, DiscoveryFailed, Event
from tunnelmgr.core.snapshot import Snapshot
from tunnelmgr.core.trust import Method
from tunnelmgr.discovery.polling import Poller
from tunnelmgr.errors import DiscoveryError

AGENT = Agent(AgentId("fake:a"), "1", "fake", "ci", "a", ("10.0.0.1",))
WHOLE = Snapshot(frozenset({AGENT}))
HALF = Snapshot(frozenset(), failures=("eu-west-1: throttled",))


@dataclass
class FakeSource:
    """Gives these answers in turn, and then repeats the last one."""

    answers: list[Callable[[], Snapshot]]
    config: SourceConfig = field(
        default_factory=lambda: SourceConfig(name="fake", type="fake", trust=[Method.CONSOLE], poll="15s")
    )
    asked: int = 0

    def discover(self) -> Snapshot:
        """Answer, or fail."""
        self.asked += 1
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        return answer()


def complete() -> Snapshot:
    """Return a complete snapshot."""
    return WHOLE


def partial() -> Snapshot:
    """Return a partial snapshot."""
    return HALF


def fail() -> Snapshot:
    """Fail as a source may."""
    raise DiscoveryError("fake", "throttled")


def crash() -> Snapshot:
    """Raise an exception that a plug-in should not raise."""
    raise ZeroDivisionError


async def polled(*answers: Callable[[], Snapshot]) -> tuple[list[Event], list[str]]:
    """Poll once for each answer; return the reported events and the logged ones."""
    events = RecordedEvents()
    poller = Poller(FakeSource(list(answers)), events)
    with capture_logs() as logs:
        for _ in answers:
            await poller.poll()
    return events, [str(entry["event"]) for entry in logs]


async def test_an_answer_is_reported() -> None:
    """A snapshot is reported with the name of its source."""
    events, logs = await polled(complete)

    assert events == [AgentsDiscovered("fake", WHOLE)]
    assert logs == []


async def test_a_failure_is_reported_without_agents() -> None:
    """A failure reports no agents, so that the last snapshot stays in force."""
    events, _ = await polled(fail)

    assert events == [DiscoveryFailed("fake", "throttled")]


async def test_a_partial_answer_is_reported() -> None:
    """A partial snapshot is reported with its failures."""
    events, logs = await polled(partial)

    assert events == [AgentsDiscovered("fake", HALF)]
    assert logs == ["source failed"]


async def test_a_source_that_crashes_fails_alone() -> None:
    """An unexpected exception is a failure of its source only, and its traceback is logged."""
    events, logs = await polled(crash, complete)

    assert events == [
        DiscoveryFailed("fake", "ZeroDivisionError(); see the traceback in the log"),
        AgentsDiscovered("fake", WHOLE),
    ]
    assert "source crashed" in logs


async def test_a_change_between_answering_and_failing_is_logged_once() -> None:
    """Only the first failure and the recovery are logged, not every poll."""
    _, logs = await polled(complete, fail, fail, fail, complete, complete)

    assert logs == ["source failed", "source recovered"]


async def test_a_source_that_hangs_is_polled_once() -> None:
    """A source that hangs fails at each deadline, but is not called again and uses one thread."""
    release, events = threading.Event(), RecordedEvents()

    def hang() -> Snapshot:
        release.wait(10)
        return WHOLE

    source = FakeSource([hang])
    poller = Poller(source, events, timeout=0.02)
    threads = threading.active_count()

    for _ in range(3):
        await poller.poll()
    asked, more_threads = source.asked, threading.active_count() - threads
    release.set()

    assert events == [DiscoveryFailed("fake", "no answer within 0.02 s")] * 3
    assert asked == 1
    assert more_threads <= 1


@dataclass
class SourceWithIds(FakeSource):
    """A source that can also return the state of agents that a listing lacks."""

    found: Snapshot | None = None
    wanted: list[Agent] = field(default_factory=list)

    def find_by_id(self, agents: Sequence[Agent]) -> Snapshot:
        """Return the state of agents, or fail."""
        self.wanted += agents
        if self.found is None:
            raise DiscoveryError("fake", "503")
        return self.found


class OneKnownAgent:
    """Knows one agent, which every source should list."""

    def missing_from(self, source: str, listing: Snapshot) -> list[Agent]:  # noqa: ARG002 - as `MissingLookup`
        """Return the agent unless it is listed."""
        return [] if AGENT in listing.agents else [AGENT]


@pytest.mark.parametrize(
    ("found", "reported"),
    [
        (WHOLE, Snapshot(frozenset({AGENT}), unlisted=frozenset({AGENT.id}))),
        (Snapshot(frozenset(), frozenset({AGENT.id})), Snapshot(frozenset(), frozenset({AGENT.id}))),
        (None, Snapshot(frozenset(), failures=("503",))),
    ],
)
async def test_missing_agents_are_requested_by_id(found: Snapshot | None, reported: Snapshot) -> None:
    """The answer by id completes the listing; if there is none, the listing is incomplete."""
    source = SourceWithIds([complete, lambda: Snapshot(frozenset())], found=found)
    events = RecordedEvents()
    poller = Poller(source, events, missing=OneKnownAgent())

    await poller.poll()
    assert source.wanted == []
    await poller.poll()

    assert source.wanted == [AGENT]
    assert events == [AgentsDiscovered("fake", WHOLE), AgentsDiscovered("fake", reported)]


async def test_a_source_without_requests_by_id_is_reported_as_listed() -> None:
    """Requests by id are optional for a source."""
    events = RecordedEvents()

    await Poller(FakeSource([lambda: Snapshot(frozenset())]), events, missing=OneKnownAgent()).poll()

    assert events == [AgentsDiscovered("fake", Snapshot(frozenset()))]


@dataclass(frozen=True)
class QueuedEvents:
    """Puts each event into a queue, for which a test can wait."""

    queue: asyncio.Queue[Event]

    def report(self, event: Event) -> None:
        """Put an event into the queue."""
        self.queue.put_nowait(event)


async def test_a_wake_up_causes_the_next_poll() -> None:
    """A source is polled once at the start, and once for each wake-up."""
    reported = asyncio.Queue[Event]()
    poller = Poller(FakeSource([complete]), QueuedEvents(reported))

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(poller.run(), name="poller")
        first = await reported.get()
        poller.wake()
        second = await reported.get()
        running.cancel()

    assert first == second == AgentsDiscovered("fake", WHOLE)
    assert reported.empty()
