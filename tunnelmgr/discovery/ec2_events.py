"""EC2's state changes as they happen: an SQS queue that EventBridge feeds, read by long polling.

Events carry no tags, and may be late, doubled, out of order, or about machines that are not ours. So an event is
believed in one thing only, that an instance is over, which cannot be taken back; any other one is a reason to ask
EC2 again. Every message is deleted, whatever it was: a message that stays would come again for ever.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-instance-state-changes.html
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import AgentEnded, Event, FeedReported
from tunnelmgr.discovery.aws_clients import AwsError, aws_error_text
from tunnelmgr.threads import in_thread

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import DeleteMessageBatchRequestEntryTypeDef

log = structlog.get_logger(__name__)

WAIT = 20
"""Seconds of one long poll, SQS's maximum."""
OVER = frozenset({"shutting-down", "terminated"})
DETAIL_TYPE = "EC2 Instance State-change Notification"
RETRY = (1.0, 2.0, 5.0, 15.0)
"""Seconds to wait after the first, second, … failure in a row; the last one from then on."""
ECHOES = (1.0, 3.0)
"""Seconds after an event at which EC2 is asked once more: its listing lags behind its events."""


class EventQueue(Protocol):
    """What is needed of SQS; blocks."""

    def receive(self) -> list[dict[str, Any]]:
        """Wait for messages and return them."""
        ...

    def delete(self, receipts: list[str]) -> None:
        """Delete messages."""
        ...


@dataclass(slots=True)
class EventFeed:
    """Reads one source's queue until cancelled, and wakes the source."""

    source: str
    queue: EventQueue
    report: Callable[[Event], None]
    wake: Callable[[], None]
    _error: str | None = field(default="not heard yet")

    async def run(self) -> None:
        """Read for ever; a failing queue is reported, and tried again more slowly."""
        failures = 0
        while True:
            try:
                await self._read_once()
            except AwsError as failed:
                self._note(aws_error_text(failed))
            except Exception as broken:  # a bulkhead: a queue is a plug-in's, and polling must go on without it
                log.exception("event queue broke", source=self.source)
                self._note(f"{broken!r}; the log has the trace")
            else:
                failures = 0
                continue
            await asyncio.sleep(RETRY[min(failures, len(RETRY) - 1)])
            failures += 1

    async def _read_once(self) -> None:
        messages = await in_thread(self.queue.receive)
        self._note(None)
        if not messages:
            return
        states = [state for message in messages if (state := read(message.get("Body", ""))) is not None]
        self._act(states)
        receipts = [message["ReceiptHandle"] for message in messages if "ReceiptHandle" in message]
        await in_thread(self.queue.delete, receipts)

    def _act(self, states: Iterable[tuple[AgentId, str]]) -> None:
        woken = False
        for agent, state in states:
            if state in OVER:
                self.report(AgentEnded(self.source, agent, f"EC2 says that it is {state}"))
            woken = True
        if woken:
            self.wake()
            loop = asyncio.get_running_loop()
            for delay in ECHOES:
                loop.call_later(delay, self.wake)

    def _note(self, error: str | None) -> None:
        if error == self._error:
            return
        self._error = error
        if error:
            log.warning("event queue fails; polling goes on", source=self.source, error=error)
        else:
            log.info("event queue answers", source=self.source)
        self.report(FeedReported(self.source, error))


def read(body: str) -> tuple[AgentId, str] | None:
    """Return an event's agent and its new state; None for anything that is not such an event."""
    try:
        event = json.loads(body)
        if event["detail-type"] != DETAIL_TYPE or event["source"] != "aws.ec2":
            return None
        instance, state = event["detail"]["instance-id"], event["detail"]["state"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(instance, str) or not isinstance(state, str):
        return None
    return AgentId(f"ec2:{instance}"), state


class SqsQueue:
    """An SQS queue by its URL; `client` is asked for at each call, because credentials are renewed."""

    def __init__(self, client: "Callable[[], SQSClient]", url: str) -> None:
        self._client = client
        self._url = url

    def receive(self) -> list[dict[str, Any]]:
        """Wait up to `WAIT` seconds for messages; raises botocore's errors."""
        answer = self._client().receive_message(QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=WAIT)
        return [dict(message) for message in answer.get("Messages", [])]

    def delete(self, receipts: list[str]) -> None:
        """Delete messages; raises botocore's errors."""
        entries: list[DeleteMessageBatchRequestEntryTypeDef] = [
            {"Id": str(at), "ReceiptHandle": receipt} for at, receipt in enumerate(receipts)
        ]
        if entries:
            self._client().delete_message_batch(QueueUrl=self._url, Entries=entries)
