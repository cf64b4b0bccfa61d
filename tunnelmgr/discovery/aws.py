"""How AWS is asked: clients with every timeout set and a role that is renewed, and AWS's errors in our words."""

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

AwsError = (ClientError, BotoCoreError)

# Adaptive mode slows down by itself while AWS throttles:
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
}


class Clients:
    """EC2 clients by region, from the ordinary credential chain or through `role`; safe to use from any thread."""

    def __init__(self, *, role: str | None = None, endpoint_url: str | None = None) -> None:
        self._role = role
        self._endpoint = endpoint_url
        self._lock = threading.Lock()
        self._session: boto3.Session | None = None
        self._clients: dict[str, EC2Client] = {}
        self._expires = _NEVER

    def ec2(self, region: str) -> "EC2Client":
        """Return the client for a region, renewed in time where a role is assumed.

        Raises botocore's errors where the role cannot be assumed.
        """
        with self._lock:
            if self._session is None or datetime.now(UTC) > self._expires - _RENEW_BEFORE:
                self._session, self._clients = self._opened(region), {}
            if region not in self._clients:
                self._clients[region] = self._session.client(
                    "ec2", region_name=region, endpoint_url=self._endpoint, config=_CLIENT
                )
            return self._clients[region]

    def _opened(self, region: str) -> boto3.Session:
        """Return a session, with the role's credentials where there is one; `region` is where STS is asked."""
        base = boto3.Session()
        if self._role is None:
            return base
        sts = base.client("sts", region_name=region, endpoint_url=self._endpoint, config=_CLIENT)
        lent = sts.assume_role(RoleArn=self._role, RoleSessionName="tunnelmgr")["Credentials"]
        self._expires = lent["Expiration"]
        return boto3.Session(
            aws_access_key_id=lent["AccessKeyId"],
            aws_secret_access_key=lent["SecretAccessKey"],
            aws_session_token=lent["SessionToken"],
        )


def explain(error: Exception) -> str:
    """Return an AWS error as a sentence that names the permission or the setting that is missing."""
    if isinstance(error, ClientError):
        facts = error.response.get("Error", {})
        code = facts.get("Code", "?")
        if code in {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}:
            return f"{code}: the permission {_PERMISSIONS.get(error.operation_name, error.operation_name)} is missing"
        return f"{code}: {facts.get('Message', '')}".rstrip(": ")
    if isinstance(error, NoCredentialsError):
        return "no AWS credentials: use an instance profile, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return str(error)
