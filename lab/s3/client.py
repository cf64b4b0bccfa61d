"""Starts the S3 server on a machine of the lab and controls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from lab.cloud_service import CloudService

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lab.namespaces import Namespace

REGION = "us-east-1"


@dataclass(frozen=True)
class S3User:
    """A user's credential for one bucket, as a registry needs it."""

    bucket: str
    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which AWS's libraries, and so docker-registry, find the credential."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def storage(self) -> dict[str, object]:
        """Return docker-registry's `storage` section; the credential is not in it."""
        return {
            "s3": {
                "region": REGION,
                "regionendpoint": self.endpoint,
                "bucket": self.bucket,
                "secure": False,
                "v4auth": True,
            },
            "redirect": {"disable": True},
        }


class S3Service(CloudService):
    """An S3 API that the other machines of the lab reach."""

    def __init__(self, machine: Namespace, port: int, folder: Path) -> None:
        super().__init__("lab.s3", machine, port, folder)
        self._endpoint = f"http://{machine.ip}:{port}"

    def create(self, bucket: str, policies: Mapping[str, object]) -> dict[str, S3User]:
        """Make a bucket and a user for each policy, an IAM policy document; from then on, every request needs a key."""
        made = cast("dict[str, list[str]]", self.command("create", bucket, dict(policies)))
        return {name: S3User(bucket, self._endpoint, *keys) for name, keys in made.items()}

    def objects(self) -> dict[str, int]:
        """Return the keys of the bucket's objects with their sizes."""
        return cast("dict[str, int]", self.command("objects"))

    def denied(self) -> list[str]:
        """Return the requests that were denied so far, as `METHOD path`."""
        return cast("list[str]", self.command("denied"))

    def reads(self) -> dict[str, int]:
        """Return how many GETs were answered so far, and the bytes of their responses: `requests`, `bytes`."""
        return cast("dict[str, int]", self.command("reads"))

    def _listen(self) -> str:
        return f"0.0.0.0:{self.port}"
