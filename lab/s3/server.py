"""The layer in front of moto: the commands under `/_lab/`, and the list of denied requests."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import boto3
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin

from lab.cloud_service import COMMANDS, run_command
from lab.s3.client import REGION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_ADMINISTRATOR = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


class S3Api:
    """A WSGI application around moto's."""

    def __init__(self, moto: WSGIApplication, port: int) -> None:
        self._moto = moto
        self._endpoint = f"http://127.0.0.1:{port}"
        self._bucket = ""
        self._administrator: Any = None
        self._denied: list[str] = []
        self._reads = {"requests": 0, "bytes": 0}
        self._commands: Mapping[str, Callable[..., object]] = {
            "health": lambda: True,
            "create": self._create,
            "objects": self._objects,
            "denied": lambda: self._denied,
            "reads": lambda: self._reads,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "")
        if path.startswith(COMMANDS):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, answer = run_command(self._commands, path.removeprefix(COMMANDS), body)
            start_response(f"{int(status)} Lab", [("Content-Length", str(len(answer)))])
            return [answer]

        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:  # noqa: ANN401 - as WSGI defines it
            if environ["REQUEST_METHOD"] == "GET":
                self._reads["requests"] += 1
                self._reads["bytes"] += int(dict(headers).get("Content-Length", 0))
            if status.startswith(str(HTTPStatus.FORBIDDEN.value)):
                self._denied.append(f"{environ['REQUEST_METHOD']} {path}")
            return start_response(status, headers, *rest)

        return self._moto(environ, started)

    def _create(self, bucket: str, policies: Mapping[str, Any]) -> dict[str, list[str]]:
        made = {name: self._user(name, policy) for name, policy in policies.items()}
        self._administrator = self._client("s3", *self._user("administrator", _ADMINISTRATOR))
        self._administrator.create_bucket(Bucket=bucket)
        self._bucket = bucket
        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
        ActionAuthenticatorMixin.request_count = 0
        return made

    def _user(self, name: str, policy: Mapping[str, Any]) -> list[str]:
        """Make a user with a policy, and return its access key and secret key."""
        iam = self._client("iam", "lab", "lab")
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(_for_moto(policy)))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return [key["AccessKeyId"], key["SecretAccessKey"]]

    def _objects(self) -> dict[str, int]:
        pages = self._administrator.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def _client(self, service: str, access_key: str, secret_key: str) -> Any:  # noqa: ANN401 - made by boto3 at run time
        return boto3.client(  # type: ignore[call-overload]
            service,
            region_name=REGION,
            endpoint_url=self._endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
        )


def _for_moto(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy in which a permission for a bucket's objects is one for the bucket too.

    If several objects are deleted by one request, moto compares the bucket's name with the policy's resources, and AWS
    the name of each object.
    """
    return {**policy, "Statement": [_with_bucket(statement) for statement in policy["Statement"]]}


def _with_bucket(statement: Mapping[str, Any]) -> dict[str, Any]:
    resource = statement["Resource"]
    return {**statement, "Resource": [resource, resource.removesuffix("/*")]}
