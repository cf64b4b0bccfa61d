"""Clients of AWS with every timeout set and a role that is renewed, and the errors of AWS as sentences."""

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from tunnelmgr.core.sanitize import error_text, sanitize

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_sqs import SQSClient

AwsError = (ClientError, BotoCoreError)

# Adaptive mode slows down while AWS throttles:
# https://boto3.amazonaws.com/v1/documentation/api/latest/guide/retries.html
_CLIENT = BotoConfig(
    connect_timeout=5,
    read_timeout=20,
    retries={"mode": "adaptive", "total_max_attempts": 4},
    user_agent_extra="tunnelmgr",
)
_NEVER = datetime.max.replace(tzinfo=UTC)
_RENEW_BEFORE = timedelta(minutes=5)
_PERMISSIONS = {
    "DescribeInstances": "ec2:DescribeInstances",
    "GetConsoleOutput": "ec2:GetConsoleOutput",
    "AssumeRole": "sts:AssumeRole",
    "ReceiveMessage": "sqs:ReceiveMessage",
    "DeleteMessageBatch": "sqs:DeleteMessage",
}


class AwsClients:
    """Clients by service and region, with the ordinary credentials or those of `role`; safe to use from any thread."""

    def __init__(self, *, role: str | None = None, endpoint_url: str | None = None) -> None:
        self._role = role
        self._endpoint = endpoint_url
        self._lock = threading.Lock()
        self._session: boto3.Session | None = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._expires = _NEVER

    def ec2(self, region: str) -> "EC2Client":
        """Return the client for a region; raises botocore's errors if the role cannot be assumed."""
        client: EC2Client = self._client("ec2", region, _CLIENT)
        return client

    def sqs(self, region: str) -> "SQSClient":
        """Return the client for a region's queues, whose long polls take longer than other calls; raises as `ec2`."""
        client: SQSClient = self._client("sqs", region, _CLIENT.merge(BotoConfig(read_timeout=40)))
        return client

    def _client(self, service: str, region: str, config: BotoConfig) -> Any:  # noqa: ANN401 - made at run time
        """Return a client; with a role, one whose credentials do not expire soon."""
        with self._lock:
            if self._session is None or datetime.now(UTC) > self._expires - _RENEW_BEFORE:
                self._session, self._clients = self._opened(region), {}
            key = (service, region)
            if key not in self._clients:
                factory: Any = self._session.client
                self._clients[key] = factory(service, region_name=region, endpoint_url=self._endpoint, config=config)
            return self._clients[key]

    def _opened(self, region: str) -> boto3.Session:
        """Return a session, with the role's credentials if there is one, from the STS endpoint of `region`."""
        base = boto3.Session()
        if self._role is None:
            return base
        sts = base.client("sts", region_name=region, endpoint_url=self._endpoint, config=_CLIENT)
        credentials = sts.assume_role(RoleArn=self._role, RoleSessionName="tunnelmgr")["Credentials"]
        self._expires = credentials["Expiration"]
        return boto3.Session(
            aws_access_key_id=credentials["AccessKeyId"],
            aws_secret_access_key=credentials["SecretAccessKey"],
            aws_session_token=credentials["SessionToken"],
        )


def aws_error_text(error: Exception) -> str:
    """Return an AWS error as a sentence that names the permission or the setting that is missing."""
    if isinstance(error, ClientError):
        facts = error.response.get("Error", {})
        code = facts.get("Code", "?")
        if code in {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}:
            return f"{code}: the permission {_PERMISSIONS.get(error.operation_name, error.operation_name)} is missing"
        return sanitize(f"{code}: {facts.get('Message', '')}".rstrip(": "))
    if isinstance(error, NoCredentialsError):
        return "no AWS credentials: use an instance profile, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return error_text(error)
