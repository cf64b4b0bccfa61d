"""SQS queues in moto; the lab sends the messages that EventBridge would, because moto sends none."""

from __future__ import annotations

from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.sqs.models import sqs_backends


class Queues:
    """Queues of one region, by name."""

    def create(self, region: str, name: str, endpoint: str) -> str:
        """Make a queue and return its URL at `endpoint`."""
        self._backend(region).create_queue(name)
        return f"{endpoint}/{DEFAULT_ACCOUNT_ID}/{name}"

    def send(self, region: str, name: str, body: str) -> None:
        """Put one message into a queue."""
        self._backend(region).send_message(name, body)

    def left(self, region: str, name: str) -> int:
        """Return the number of messages that are not deleted."""
        return len(self._backend(region).get_queue(name)._messages)  # noqa: SLF001 - includes those in flight

    def _backend(self, region: str) -> Any:  # noqa: ANN401 - moto's models are untyped
        return sqs_backends[DEFAULT_ACCOUNT_ID][region]
