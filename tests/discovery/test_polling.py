"""How sources are polled: one at a time, with a deadline, and a failure costs nobody a tunnel."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

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
    """Gives these answers in turn, the last one for ever."""

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


def whole() -> Snapshot:
    """Answer wholly."""
    return WHOLE


def half() -> Snapshot:
    """Answer in part."""
    return HALF


def fail() -> Snapshot:
    """Give no answer."""
    raise DiscoveryError("fake", "throttled")


def crash() -> Snapshot:
    """Do what a plug-in should not do."""
    raise ZeroDivisionError


async def polled(*answers: Callable[[], Snapshot]) -> tuple[list[Event], list[str]]:
    """Poll once for each answer; return what was reported, and what was logged."""
    events: list[Event] = []
    poller = Poller(FakeSource(list(answers)), events.append)
    with capture_logs() as logs:
        for _ in answers:
            await poller.poll()
    return events, [str(entry["event"]) for entry in logs]


async def test_an_answer_is_reported() -> None:
    """Under the source's name."""
    events, logs = await polled(whole)

    assert events == [AgentsDiscovered("fake", WHOLE)]
    assert logs == []


async def test_a_failure_is_reported_without_any_agents() -> None:
    """So that the last snapshot stays in force."""
    events, _ = await polled(fail)

    assert events == [DiscoveryFailed("fake", "throttled")]


async def test_half_an_answer_is_reported_as_it_is() -> None:
    """What came before the failure counts."""
    events, logs = await polled(half)

    assert events == [AgentsDiscovered("fake", HALF)]
    assert logs == ["source fails; its last snapshot stays"]


async def test_a_source_that_crashes_fails_alone() -> None:
    """Its polling goes on, and the log has the trace."""
    events, logs = await polled(crash, whole)

    assert events == [
        DiscoveryFailed("fake", "ZeroDivisionError(); the log has the trace"),
        AgentsDiscovered("fake", WHOLE),
    ]
    assert "source failed" in logs


async def test_a_change_between_answering_and_failing_is_logged_once() -> None:
    """Not at every poll."""
    _, logs = await polled(whole, fail, fail, fail, whole, whole)

    assert logs == ["source fails; its last snapshot stays", "source answers again"]


async def test_a_source_that_hangs_is_given_up_and_not_asked_twice_at_a_time() -> None:
    """Nor does it take a thread from anybody else each time."""
    let_go, events = threading.Event(), list[Event]()

    def hang() -> Snapshot:
        let_go.wait(10)
        return WHOLE

    source = FakeSource([hang])
    poller = Poller(source, events.append, patience=0.02)
    threads = threading.active_count()

    for _ in range(3):
        await poller.poll()
    asked, more_threads = source.asked, threading.active_count() - threads
    let_go.set()

    assert events == [DiscoveryFailed("fake", "no answer within 0.02 s")] * 3
    assert asked == 1
    assert more_threads == 1


@dataclass
class AskedSource(FakeSource):
    """Also says what has become of agents that a listing lacks."""

    found: Snapshot | None = None
    wanted: list[Agent] = field(default_factory=list)

    def find_by_id(self, agents: Sequence[Agent]) -> Snapshot:
        """Answer, or fail."""
        self.wanted += agents
        if self.found is None:
            raise DiscoveryError("fake", "503")
        return self.found


def lacks_one(_source: str, listing: Snapshot) -> list[Agent]:
    """Name the agent, unless it is listed."""
    return [] if AGENT in listing.agents else [AGENT]


@pytest.mark.parametrize(
    ("found", "reported"),
    [
        (WHOLE, Snapshot(frozenset({AGENT}), unlisted=frozenset({AGENT.id}))),
        (Snapshot(frozenset(), frozenset({AGENT.id})), Snapshot(frozenset(), frozenset({AGENT.id}))),
        (None, Snapshot(frozenset(), failures=("503",))),
    ],
)
async def test_agents_that_a_listing_lacks_are_asked_for(found: Snapshot | None, reported: Snapshot) -> None:
    """The answer completes the listing; where there is none, the listing is not whole."""
    source = AskedSource([whole, lambda: Snapshot(frozenset())], found=found)
    events: list[Event] = []
    poller = Poller(source, events.append, missing=lacks_one)

    await poller.poll()
    assert source.wanted == []
    await poller.poll()

    assert source.wanted == [AGENT]
    assert events == [AgentsDiscovered("fake", WHOLE), AgentsDiscovered("fake", reported)]


async def test_a_source_that_cannot_be_asked_for_agents_is_believed_as_it_lists() -> None:
    """Looking up by id is optional."""
    events: list[Event] = []

    await Poller(FakeSource([lambda: Snapshot(frozenset())]), events.append, missing=lacks_one).poll()

    assert events == [AgentsDiscovered("fake", Snapshot(frozenset()))]


async def test_the_bell_brings_the_next_poll() -> None:
    """One poll at the start, one a ring."""
    reported = asyncio.Queue[Event]()
    poller = Poller(FakeSource([whole]), reported.put_nowait)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(poller.run(), name="poller")
        first = await reported.get()
        poller.wakeups.set()
        second = await reported.get()
        running.cancel()

    assert first == second == AgentsDiscovered("fake", WHOLE)
    assert reported.empty()
