"""An SQS queue whose errors are sentences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunnelmgr.discovery.aws_clients import AwsError, aws_error_text
from tunnelmgr.errors import DiscoveryError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import DeleteMessageBatchRequestEntryTypeDef

WAIT = 20
"""Seconds of one long poll, the maximum of SQS."""


@dataclass(frozen=True, slots=True)
class SqsQueue:
    """The queue of one source, by its URL; `client` is called for each request, because credentials are renewed."""

    source: str
    client: "Callable[[], SQSClient]"
    url: str

    def receive(self) -> list[dict[str, Any]]:
        """Wait up to `WAIT` seconds for messages; raises DiscoveryError."""
        try:
            answer = self.client().receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=WAIT)
        except AwsError as failed:
            raise DiscoveryError(self.source, aws_error_text(failed)) from failed
        return [dict(message) for message in answer.get("Messages", [])]

    def delete(self, receipts: list[str]) -> None:
        """Delete messages; raises DiscoveryError."""
        entries: list[DeleteMessageBatchRequestEntryTypeDef] = [
            {"Id": str(at), "ReceiptHandle": receipt} for at, receipt in enumerate(receipts)
        ]
        if not entries:
            return
        try:
            self.client().delete_message_batch(QueueUrl=self.url, Entries=entries)
        except AwsError as failed:
            raise DiscoveryError(self.source, aws_error_text(failed)) from failed
