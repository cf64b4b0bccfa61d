"""EC2's state changes as they happen: a queue that EventBridge feeds, read by long polling.

Events have no tags, and may be late, duplicated, out of order, or about machines of others. So only one kind of event
changes the world: that an instance has ended, which is final. Any other one only causes a poll. Every message is
deleted, regardless of its contents, because a message that stays is delivered again and again.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-instance-state-changes.html
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import AgentEnded, FeedReported
from tunnelmgr.core.ports import EventSink
from tunnelmgr.errors import DiscoveryError
from tunnelmgr.threads import in_thread

log = structlog.get_logger(__name__)

OVER = frozenset({"shutting-down", "terminated"})
DETAIL_TYPE = "EC2 Instance State-change Notification"
RETRY = (1.0, 2.0, 5.0, 15.0)
"""Seconds to wait after the first, second, … failure in a row; the last one from then on."""
REPOLL_DELAYS = (1.0, 3.0)
"""Seconds after an event at which EC2 is polled again, because its listing lags behind its events."""


class EventQueue(Protocol):
    """A queue of messages, such as `sqs.py`; its methods block."""

    def receive(self) -> list[dict[str, Any]]:
        """Wait for messages and return them; raises DiscoveryError if the cloud refuses."""
        ...

    def delete(self, receipts: list[str]) -> None:
        """Delete messages; raises DiscoveryError if the cloud refuses."""
        ...


class Wakeable(Protocol):
    """A poller that can be woken; `polling.py` implements it."""

    def wake(self) -> None:
        """Poll the source again soon."""
        ...


@dataclass(slots=True)
class EventFeed:
    """Reads the queue of one source, and triggers a poll of the source after an event."""

    source: str
    queue: EventQueue
    events: EventSink
    poller: Wakeable
    _error: str | None = field(default="not read yet")

    async def run(self) -> None:
        """Read until cancelled; a failing queue is reported, and read again after a growing pause."""
        failures = 0
        while True:
            try:
                await self._read_once()
            except DiscoveryError as failed:
                self._note(failed.reason)
            except (
                Exception
            ) as broken:  # a bulkhead: a queue is part of a plug-in, and polling must continue without it
                log.exception("event queue crashed", source=self.source)
                self._note(f"{broken!r}; see the traceback in the log")
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
                self.events.report(AgentEnded(self.source, agent, f"EC2 reports {state}"))
            woken = True
        if woken:
            self.poller.wake()
            loop = asyncio.get_running_loop()
            for delay in REPOLL_DELAYS:
                loop.call_later(delay, self.poller.wake)

    def _note(self, error: str | None) -> None:
        if error == self._error:
            return
        self._error = error
        if error:
            log.warning("event queue failed", source=self.source, error=error)
        else:
            log.info("event queue recovered", source=self.source)
        self.events.report(FeedReported(self.source, error))


def read(body: str) -> tuple[AgentId, str] | None:
    """Return the agent and its new state from an event; None for any other message."""
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
