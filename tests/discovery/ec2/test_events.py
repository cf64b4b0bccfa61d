"""Events of EC2, read with the real boto3 from an SQS queue: any message is harmless, and is deleted."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from lab.ec2 import Ec2Service
from tests.discovery.recorded_events import RecordedEvents
from tests.until import until, until_elsewhere
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import AgentEnded, FeedReported
from tunnelmgr.discovery import ec2_events, sqs
from tunnelmgr.discovery.ec2 import Ec2Config, Ec2Source
from tunnelmgr.discovery.ec2_events import EventFeed, EventQueue, read
from tunnelmgr.discovery.sqs import SqsQueue
from tunnelmgr.errors import DiscoveryError

DEADLINE = 20.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll and retry without delay."""
    monkeypatch.setattr(sqs, "WAIT", 1)
    monkeypatch.setattr(ec2_events, "RETRY", (0.05, 0.1))
    monkeypatch.setattr(ec2_events, "REPOLL_DELAYS", (0.05, 0.1))


class RunningFeed:
    """A feed that runs, and its effects."""

    def __init__(self, queue: EventQueue) -> None:
        self.events = RecordedEvents()
        self.wakes = 0
        self.feed = EventFeed("cloud", queue, self.events, self)

    def wake(self) -> None:
        """Count a wake-up."""
        self.wakes += 1

    @property
    def ended(self) -> list[str]:
        """The agents that were reported as ended, in order."""
        return [event.agent for event in self.events if isinstance(event, AgentEnded)]

    @property
    def health(self) -> list[str | None]:
        """The reported states of the queue, in order."""
        return [event.error for event in self.events if isinstance(event, FeedReported)]


@contextlib.asynccontextmanager
async def running_feed(queue: EventQueue) -> AsyncIterator[RunningFeed]:
    """Read a queue for the duration of the test."""
    running = RunningFeed(queue)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(running.feed.run(), name="feed")
        yield running
        reading.cancel()


async def until_empty(cloud: Ec2Service, name: str) -> None:
    """Wait until every message of a queue is deleted."""
    await until_elsewhere(lambda: cloud.left(name) == 0, f"{name} is empty", DEADLINE)


def queue_of(cloud: Ec2Service, name: str) -> SqsQueue:
    """Make a queue and its reader, as a source does."""
    config = Ec2Config.model_validate(
        {
            "name": "cloud",
            "type": "ec2",
            "regions": ["eu-west-1"],
            "endpoint_url": cloud.endpoint,
            "events_queue": cloud.queue(name),
        }
    )
    queue = Ec2Source(config).queue()
    assert queue is not None
    return queue


async def test_a_terminated_event_revokes_and_is_deleted(cloud: Ec2Service) -> None:
    """`terminated` and `shutting-down`, which comes before it, end the agent."""
    queue = queue_of(cloud, "ended")
    cloud.event("ended", "i-1", "shutting-down")
    cloud.event("ended", "i-2", "terminated")

    async with running_feed(queue) as feed:
        await until_empty(cloud, "ended")

    assert sorted(feed.ended) == ["ec2:i-1", "ec2:i-2"]
    assert feed.health == [None]


async def test_a_running_event_only_causes_polls(cloud: Ec2Service) -> None:
    """A running event causes a poll at once and two later ones, because EC2's listing lags behind its events."""
    queue = queue_of(cloud, "running")
    cloud.event("running", "i-1", "running")

    async with running_feed(queue) as feed:
        await until(lambda: feed.wakes >= 3)

    assert feed.ended == []
    assert cloud.left("running") == 0


async def test_late_duplicate_and_reordered_events_are_harmless(cloud: Ec2Service) -> None:
    """The end of an agent is final, regardless of later events, and each message is deleted."""
    queue = queue_of(cloud, "doubled")
    for state in ("terminated", "running", "terminated", "pending", "shutting-down", "stopping", "stopped"):
        cloud.event("doubled", "i-1", state)

    async with running_feed(queue) as feed:
        await until_empty(cloud, "doubled")

    assert feed.ended == ["ec2:i-1"] * 3


GARBAGE = [
    "",
    " ",
    "null",
    "[]",
    "{",
    '"terminated"',
    "1e999",
    "9" * 5000,
    "[" * 50_000,
    json.dumps({"detail-type": ec2_events.DETAIL_TYPE, "source": "aws.ec2", "detail": {"state": "terminated"}}),
    json.dumps({"detail-type": ec2_events.DETAIL_TYPE, "source": "aws.ec2", "detail": []}),
    json.dumps(
        {
            "detail-type": ec2_events.DETAIL_TYPE,
            "source": "aws.ec2",
            "detail": {"instance-id": 7, "state": "terminated"},
        }
    ),
    json.dumps(
        {
            "detail-type": ec2_events.DETAIL_TYPE,
            "source": "somebody.else",
            "detail": {"instance-id": "i-1", "state": "terminated"},
        }
    ),
    json.dumps(
        {
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "source": "aws.ec2",
            "detail": {"instance-id": "i-1", "state": "terminated"},
        }
    ),
]


async def test_an_invalid_message_is_deleted_too(cloud: Ec2Service) -> None:
    """A message that stays in the queue is delivered again and again."""
    queue = queue_of(cloud, "garbage")
    for body in filter(None, GARBAGE):
        cloud.send("garbage", body)

    async with running_feed(queue) as feed:
        await until_empty(cloud, "garbage")

    assert feed.ended == []
    assert feed.wakes == 0
    assert feed.health == [None]


async def test_more_messages_than_one_answer_holds_are_read(cloud: Ec2Service) -> None:
    """SQS returns ten messages at a time."""
    queue = queue_of(cloud, "many")
    for number in range(25):
        cloud.event("many", f"i-{number}", "terminated")

    async with running_feed(queue) as feed:
        await until_empty(cloud, "many")

    assert len(set(feed.ended)) == 25


async def test_a_queue_that_fails_is_reported_once_and_recovers(cloud: Ec2Service) -> None:
    """The report names the missing permission, and messages that came meanwhile are not lost."""
    queue = queue_of(cloud, "failing")

    cloud.fault("ReceiveMessage", [("AccessDenied", 403)], forever=True)
    async with running_feed(queue) as feed:
        await until(lambda: feed.health)
        calls = cloud.calls("ReceiveMessage")
        await until_elsewhere(lambda: cloud.calls("ReceiveMessage") > calls + 2, "the queue is asked again", DEADLINE)
        cloud.event("failing", "i-1", "terminated")
        cloud.clear_faults()
        await until_empty(cloud, "failing")

    assert feed.health == ["AccessDenied: the permission sqs:ReceiveMessage is missing", None]
    assert feed.ended == ["ec2:i-1"]


async def test_a_message_that_cannot_be_deleted_still_counts(cloud: Ec2Service) -> None:
    """A message that cannot be deleted takes effect once, and the failure is reported."""
    queue = queue_of(cloud, "undeleted")
    cloud.event("undeleted", "i-1", "terminated")

    cloud.fault("DeleteMessageBatch", [("AccessDenied", 403)], forever=True)
    async with running_feed(queue) as feed:
        await until(lambda: any(feed.health))
    cloud.clear_faults()

    assert feed.ended == ["ec2:i-1"]
    assert "AccessDenied: the permission sqs:DeleteMessage is missing" in feed.health


class FakeQueue:
    """A queue with given answers and failures."""

    def __init__(self, *answers: Exception | list[dict[str, Any]]) -> None:
        self._answers = iter(answers)
        self.deleted: list[str] = []

    def receive(self) -> list[dict[str, Any]]:
        """Return the next answer; after the last one, no message."""
        answer = next(self._answers, [])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def delete(self, receipts: list[str]) -> None:
        """Record the receipts."""
        self.deleted += receipts


@pytest.mark.parametrize(
    "failure",
    [
        DiscoveryError("cloud", "the queue does not exist"),
        ZeroDivisionError("a plug-in's fault"),
    ],
)
async def test_a_failing_queue_affects_nothing_else(failure: Exception) -> None:
    """Any failure is reported as that of the queue, which is read again."""
    with capture_logs():
        async with running_feed(FakeQueue(failure)) as feed:
            await until(lambda: feed.health[-1:] == [None])

    assert len(feed.health) == 2
    assert feed.health[0] is not None


async def test_repeated_failures_are_retried_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause grows with each failure in a row, and a success resets it."""
    waits: list[float] = []
    real, enough = asyncio.sleep, asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds > 100:
            waits.append(seconds)
        if len(waits) == 6:
            enough.set()
        await real(0)

    monkeypatch.setattr(ec2_events, "RETRY", (101.0, 102.0, 105.0))
    monkeypatch.setattr(ec2_events.asyncio, "sleep", sleep)
    fails = [DiscoveryError("cloud", "the queue does not exist") for _ in range(6)]

    async with running_feed(FakeQueue(*fails[:4], [], *fails[4:])):
        await asyncio.wait_for(enough.wait(), DEADLINE)

    assert waits == [101.0, 102.0, 105.0, 105.0, 101.0, 102.0]


async def test_a_message_without_a_body_or_a_receipt_is_harmless() -> None:
    """Incomplete messages are skipped, and the complete ones deleted."""
    queue = FakeQueue([{"ReceiptHandle": "a"}, {"Body": "x"}, {"Body": "y", "ReceiptHandle": "b"}])

    async with running_feed(queue):
        await until(lambda: queue.deleted)

    assert queue.deleted == ["a", "b"]


async def test_nothing_to_delete_sends_no_request(cloud: Ec2Service) -> None:
    """SQS refuses an empty batch, so none is sent."""
    before = cloud.calls("DeleteMessageBatch")

    await asyncio.to_thread(queue_of(cloud, "empty").delete, [])

    assert cloud.calls("DeleteMessageBatch") == before


def test_a_queue_is_read_in_the_region_of_its_url() -> None:
    """The queue's region need not be the first one of the source."""
    config = {"name": "cloud", "type": "ec2", "regions": ["eu-west-1", "us-east-1"]}
    url = "https://sqs.us-east-1.amazonaws.com/123456789012/tunnelmgr"
    queue = Ec2Source(Ec2Config.model_validate({**config, "events_queue": url})).queue()
    bare = Ec2Source(Ec2Config.model_validate(config))

    assert queue is not None
    assert queue.client().meta.region_name == "us-east-1"
    assert bare.queue() is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_nearly = st.fixed_dictionaries(
    {},
    optional={
        "detail-type": st.just(ec2_events.DETAIL_TYPE) | _json,
        "source": st.just("aws.ec2") | _json,
        "detail": st.fixed_dictionaries({}, optional={"instance-id": _json, "state": _json}) | _json,
    },
)


@given(st.text(max_size=200) | _json.map(json.dumps) | _nearly.map(json.dumps) | st.sampled_from(GARBAGE))
def test_any_message_is_an_event_or_ignored(body: str) -> None:
    """Random messages raise nothing, and yield a pair of texts or None."""
    found = read(body)

    if found is not None:
        agent, state = found
        assert agent.startswith("ec2:")
        assert isinstance(state, str)


def test_an_event_is_read_as_eventbridge_sends_it() -> None:
    """The example of the EC2 user guide, "Monitor for state change events", is read."""
    body = """{
      "id": "7bf73129-1428-4cd3-a780-95db273d1602", "detail-type": "EC2 Instance State-change Notification",
      "source": "aws.ec2", "account": "123456789012", "time": "2021-11-11T21:29:54Z", "region": "us-east-1",
      "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-abcd1111"],
      "detail": {"instance-id": "i-abcd1111", "state": "pending"}
    }"""

    assert read(body) == (AgentId("ec2:i-abcd1111"), "pending")
