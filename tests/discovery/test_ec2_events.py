"""EC2's events, read by a real boto3 from an SQS queue: whatever comes is harmless, and always deleted."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from lab.ec2 import Ec2Service
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import AgentEnded, Event, FeedReported
from tunnelmgr.discovery import ec2_events
from tunnelmgr.discovery.ec2 import Ec2Config, Ec2Source
from tunnelmgr.discovery.ec2_events import EventFeed, EventQueue, SqsQueue, read

DEADLINE = 20.0
PORT = 5563


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2Service]:
    """Serve SQS on loopback."""
    with Ec2Service(None, PORT, tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, cloud: Ec2Service) -> None:
    """Poll and retry in moments, with credentials that are of no worth anywhere."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ec2_events, "WAIT", 1)
    monkeypatch.setattr(ec2_events, "RETRY", (0.05, 0.1))
    monkeypatch.setattr(ec2_events, "ECHOES", (0.05, 0.1))


class Heard:
    """A feed at work, and what came of it."""

    def __init__(self, queue: EventQueue) -> None:
        self.events: list[Event] = []
        self.wakes = 0
        self.feed = EventFeed("cloud", queue, self.events.append, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    @property
    def ended(self) -> list[str]:
        """The agents of which it was told that they are over."""
        return [event.agent for event in self.events if isinstance(event, AgentEnded)]

    @property
    def health(self) -> list[str | None]:
        """What was told of the queue, in order."""
        return [event.error for event in self.events if isinstance(event, FeedReported)]


@contextlib.asynccontextmanager
async def at_work(queue: EventQueue) -> AsyncIterator[Heard]:
    """Read a queue for as long as the test lasts."""
    heard = Heard(queue)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(heard.feed.run(), name="feed")
        yield heard
        reading.cancel()


async def until(condition: Any) -> None:  # noqa: ANN401
    """Wait for what has no event of its own."""
    async with asyncio.timeout(DEADLINE):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - the queue is in another process
            await asyncio.sleep(0.02)


def queue_of(cloud: Ec2Service, name: str) -> SqsQueue:
    """Make a queue, and what reads it, as a source does."""
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
    """So does shutting-down, which comes before it."""
    queue = queue_of(cloud, "ended")
    cloud.event("ended", "i-1", "shutting-down")
    cloud.event("ended", "i-2", "terminated")

    async with at_work(queue) as heard:
        await until(lambda: cloud.left("ended") == 0)

    assert sorted(heard.ended) == ["ec2:i-1", "ec2:i-2"]
    assert heard.health == [None]


async def test_a_running_event_wakes_a_poll_and_believes_nothing(cloud: Ec2Service) -> None:
    """At once, and twice more, because EC2's listing lags behind its events."""
    queue = queue_of(cloud, "running")
    cloud.event("running", "i-1", "running")

    async with at_work(queue) as heard:
        await until(lambda: heard.wakes >= 3)

    assert heard.ended == []
    assert cloud.left("running") == 0


async def test_late_doubled_and_reordered_events_are_harmless(cloud: Ec2Service) -> None:
    """An end stays an end, whatever comes after it; and each message is deleted."""
    queue = queue_of(cloud, "doubled")
    for state in ("terminated", "running", "terminated", "pending", "shutting-down", "stopping", "stopped"):
        cloud.event("doubled", "i-1", state)

    async with at_work(queue) as heard:
        await until(lambda: cloud.left("doubled") == 0)

    assert heard.ended == ["ec2:i-1"] * 3


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


async def test_garbage_is_deleted_too(cloud: Ec2Service) -> None:
    """A message that stays would come again for ever."""
    queue = queue_of(cloud, "garbage")
    for body in filter(None, GARBAGE):
        cloud.send("garbage", body)

    async with at_work(queue) as heard:
        await until(lambda: cloud.left("garbage") == 0)

    assert heard.ended == []
    assert heard.wakes == 0
    assert heard.health == [None]


async def test_more_messages_than_one_answer_holds_are_all_read(cloud: Ec2Service) -> None:
    """SQS gives ten at a time."""
    queue = queue_of(cloud, "many")
    for number in range(25):
        cloud.event("many", f"i-{number}", "terminated")

    async with at_work(queue) as heard:
        await until(lambda: cloud.left("many") == 0)

    assert len(set(heard.ended)) == 25


async def test_a_queue_that_fails_is_told_once_and_heals(cloud: Ec2Service) -> None:
    """With the permission that is missing; what came meanwhile is not lost."""
    queue = queue_of(cloud, "failing")

    cloud.fault("ReceiveMessage", [("AccessDenied", 403)], forever=True)
    async with at_work(queue) as heard:
        await until(lambda: heard.health)
        calls = cloud.calls("ReceiveMessage")
        await until(lambda: cloud.calls("ReceiveMessage") > calls + 2)
        cloud.event("failing", "i-1", "terminated")
        cloud.clear_faults()
        await until(lambda: cloud.left("failing") == 0)

    assert heard.health == ["AccessDenied: the permission sqs:ReceiveMessage is missing", None]
    assert heard.ended == ["ec2:i-1"]


async def test_what_cannot_be_deleted_has_counted_all_the_same(cloud: Ec2Service) -> None:
    """It comes again, and changes nothing more; that it cannot be deleted is told."""
    queue = queue_of(cloud, "undeleted")
    cloud.event("undeleted", "i-1", "terminated")

    cloud.fault("DeleteMessageBatch", [("AccessDenied", 403)], forever=True)
    async with at_work(queue) as heard:
        await until(lambda: any(heard.health))
    cloud.clear_faults()

    assert heard.ended == ["ec2:i-1"]
    assert "AccessDenied: the permission sqs:DeleteMessage is missing" in heard.health


class Odd:
    """A queue that fails in ways of its own."""

    def __init__(self, *answers: Exception | list[dict[str, Any]]) -> None:
        self._answers = iter(answers)
        self.deleted: list[str] = []

    def receive(self) -> list[dict[str, Any]]:
        """Give the next answer; after the last one there is nothing more."""
        answer = next(self._answers, [])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def delete(self, receipts: list[str]) -> None:
        """Note them."""
        self.deleted += receipts


@pytest.mark.parametrize(
    "failure",
    [
        EndpointConnectionError(endpoint_url="https://sqs.invalid"),
        ClientError({"Error": {"Code": "AWS.SimpleQueueService.NonExistentQueue"}}, "ReceiveMessage"),
        ZeroDivisionError("a plug-in's fault"),
    ],
)
async def test_no_failure_of_a_queue_reaches_anybody_else(failure: Exception) -> None:
    """It is told as the queue's, and tried again."""
    with capture_logs():
        async with at_work(Odd(failure)) as heard:
            await until(lambda: heard.health[-1:] == [None])

    assert len(heard.health) == 2
    assert heard.health[0] is not None


async def test_failures_in_a_row_are_tried_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a success starts the row anew."""
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr(ec2_events, "RETRY", (101.0, 102.0, 105.0))
    monkeypatch.setattr(ec2_events.asyncio, "sleep", sleep)
    fails = [EndpointConnectionError(endpoint_url="https://sqs.invalid") for _ in range(6)]

    async with at_work(Odd(*fails[:4], [], *fails[4:])):
        async with asyncio.timeout(DEADLINE):
            while len([wait for wait in waits if wait > 100]) < 6:
                await real(0.01)

    assert [wait for wait in waits if wait > 100] == [101.0, 102.0, 105.0, 105.0, 101.0, 102.0]


async def test_a_message_without_a_body_or_a_receipt_is_no_trouble() -> None:
    """Whatever stands in SQS's place."""
    queue = Odd([{"ReceiptHandle": "a"}, {"Body": "x"}, {"Body": "y", "ReceiptHandle": "b"}])

    async with at_work(queue):
        await until(lambda: queue.deleted)

    assert queue.deleted == ["a", "b"]


async def test_nothing_to_delete_asks_nothing(cloud: Ec2Service) -> None:
    """SQS refuses an empty batch."""
    before = cloud.calls("DeleteMessageBatch")

    await asyncio.to_thread(queue_of(cloud, "empty").delete, [])

    assert cloud.calls("DeleteMessageBatch") == before


def test_a_queue_is_asked_in_the_region_that_its_url_names() -> None:
    """Which need not be the first one that is watched."""
    config = {"name": "cloud", "type": "ec2", "regions": ["eu-west-1", "us-east-1"]}
    url = "https://sqs.us-east-1.amazonaws.com/123456789012/tunnelmgr"
    queue = Ec2Source(Ec2Config.model_validate({**config, "events_queue": url})).queue()
    bare = Ec2Source(Ec2Config.model_validate(config))

    assert queue is not None
    assert queue._client().meta.region_name == "us-east-1"
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
def test_whatever_a_message_says_it_is_an_event_or_nothing(body: str) -> None:
    """Nothing is raised, and nothing but a pair of strings comes out."""
    found = read(body)

    if found is not None:
        agent, state = found
        assert agent.startswith("ec2:")
        assert isinstance(state, str)


def test_an_event_is_read_as_eventbridge_sends_it() -> None:
    """From the EC2 user guide, "Monitor for state change events"."""
    body = """{
      "id": "7bf73129-1428-4cd3-a780-95db273d1602", "detail-type": "EC2 Instance State-change Notification",
      "source": "aws.ec2", "account": "123456789012", "time": "2021-11-11T21:29:54Z", "region": "us-east-1",
      "resources": ["arn:aws:ec2:us-east-1:123456789012:instance/i-abcd1111"],
      "detail": {"instance-id": "i-abcd1111", "state": "pending"}
    }"""

    assert read(body) == (AgentId("ec2:i-abcd1111"), "pending")
