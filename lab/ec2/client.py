"""Starts the stand-in for EC2 on a machine of the lab and controls it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Self

from lab.cloud_service import CloudService

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lab.namespaces import Machine

REGION = "eu-west-1"


class Ec2Service(CloudService):
    """An EC2 API on loopback of a machine of the lab, or of the host if no machine is given."""

    def __init__(self, machine: Machine | None, port: int, folder: Path) -> None:
        super().__init__("lab.ec2", machine, port, folder)

    @property
    def endpoint(self) -> str:
        """The `endpoint_url` for clients on the same machine."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment that clients need; the credentials are dummies."""
        return {
            "AWS_ACCESS_KEY_ID": "lab",
            "AWS_SECRET_ACCESS_KEY": "lab",  # pragma: allowlist secret
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, environment: Mapping[str, str] | None = None) -> Self:
        """Start the API and wait until it answers (about 2 s, most of it moto's imports)."""
        return super().start(self.environment | dict(environment or {}))

    def launch(
        self,
        ip: str,
        tags: Mapping[str, str] | None = None,
        *,
        region: str = REGION,
        public: bool = False,
        console: str | None = None,
    ) -> str:
        """Run an instance with this private address and return its id; it is `running` at once.

        `console` is its console output.
        """
        return str(self.command("launch", region, ip, dict(tags or {}), public=public, console=console))

    def console(self, instance: str, text: str) -> None:
        """Set the whole console output; until then the API returns none."""
        self.command("console", instance, text)

    def state(self, instance: str, name: str) -> None:
        """Show the instance in this state: pending, running, shutting-down, terminated, stopping or stopped."""
        self.command("state", instance, name)

    def move(self, instance: str, ip: str) -> None:
        """Start a stopped instance with another private address."""
        self.command("move", instance, ip)

    def terminate(self, instance: str) -> None:
        """Terminate the instance; it stays listed, and its address is free for another one at once."""
        self.command("terminate", instance)

    def forget(self, instance: str) -> None:
        """Remove the instance from every answer."""
        self.command("forget", instance)

    def fault(
        self,
        action: str,
        faults: Iterable[tuple[str, int]],
        *,
        forever: bool = False,
        later_pages: bool = False,
        stall: float = 0.0,
    ) -> None:
        """Make the next calls of an action such as DescribeInstances fail, each with one `(code, HTTP status)`.

        `forever` keeps the fault until `clear_faults`. `later_pages` exempts the first page of a listing, which makes a
        truncated answer (see `page_size`). `stall` delays the answer by that many seconds, at most until
        `clear_faults`. With an empty code the call only stalls, then succeeds.
        """
        common = {"forever": forever, "later_pages": later_pages, "stall": stall}
        self.command("fault", action, [{"code": code, "status": status, **common} for code, status in faults])

    def empty_listings(self, times: int | None = None) -> None:
        """Make the next listings, or all until `clear_faults`, return no instance; requests by id are not affected."""
        fault = {"empty": True, "forever": times is None}
        self.command("fault", "DescribeInstances", [fault] * (times or 1))

    def clear_faults(self) -> None:
        """Make every call succeed again, also those that stall now."""
        self.command("clear-faults")

    def page_size(self, reservations: int) -> None:
        """Limit the pages of DescribeInstances to this many launches; 0 means as the client requests."""
        self.command("page-size", reservations)

    def calls(self, action: str) -> int:
        """Return the number of calls of an action so far, including failed ones."""
        return int(str(self.command("calls", action)))

    def queue(self, name: str, *, region: str = REGION) -> str:
        """Make an SQS queue and return its URL."""
        return str(self.command("create-queue", region, name, self.endpoint))

    def send(self, name: str, body: str, *, region: str = REGION) -> None:
        """Put a message into a queue."""
        self.command("send", region, name, body)

    def event(self, name: str, instance: str, state: str) -> None:
        """Put a state-change notification into a queue, as an EventBridge rule does."""
        detail = {"instance-id": instance, "state": state}
        kind = "EC2 Instance State-change Notification"
        self.send(name, json.dumps({"version": "0", "detail-type": kind, "source": "aws.ec2", "detail": detail}))

    def left(self, name: str, *, region: str = REGION) -> int:
        """Return the number of messages in a queue, including those in flight."""
        return int(str(self.command("left", region, name)))
