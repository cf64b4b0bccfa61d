"""Starts the EC2 look-alike on a machine of the lab and commands it."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tunnelmgr
from tunnelmgr.demo.namespaces import Machine
from tunnelmgr.demo.processes import LabError, Process, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

REGION = "eu-west-1"


class Cloud:
    """An EC2 API on loopback of one machine of the lab, or of the host when no machine is given."""

    def __init__(self, machine: Machine | None, port: int, folder: Path) -> None:
        self._machine = machine or Machine()
        self._port = port
        self._folder = folder
        self._log = folder / "cloud.log"
        self._process: Process | None = None

    @property
    def endpoint(self) -> str:
        """The `endpoint_url` for clients on the same machine."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment; the credentials are of no worth anywhere."""
        return {
            "AWS_ACCESS_KEY_ID": "lab",
            "AWS_SECRET_ACCESS_KEY": "lab",  # pragma: allowlist secret
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> Self:
        """Start the API and wait until it answers (some 2 s, nearly all of it moto's imports)."""
        self._machine.require_free(self._port)
        self._folder.mkdir(parents=True, exist_ok=True)
        serve = [sys.executable, "-m", "tunnelmgr.demo.cloud", "--listen", f"127.0.0.1:{self._port}"]
        home = str(Path(tunnelmgr.__file__).parents[1])
        self._process = process = self._machine.popen(
            serve, log=self._log, env={**self.environment, "PYTHONPATH": home}
        )
        until(lambda: process.poll() is not None or self._answers(), f"cloud answers on {self.endpoint}", timeout=30)
        if process.poll() is not None:
            raise LabError(f"cloud does not start on {self.endpoint}: {self.log()[-800:]}")
        return self

    def stop(self) -> None:
        """Stop the API; its instances are gone with it."""
        if self._process:
            self._process.end(patience=2)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log(self) -> str:
        """Return the server's log, one line for each request."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def launch(
        self, ip: str, tags: Mapping[str, str] | None = None, *, region: str = REGION, public: bool = False
    ) -> str:
        """Run an instance with this private address and return its id; it is `running` at once."""
        return str(self._command("launch", region, ip, dict(tags or {}), public=public))

    def console(self, instance: str, text: str) -> None:
        """Set the whole console output; before this the API answers without any."""
        self._command("console", instance, text)

    def state(self, instance: str, name: str) -> None:
        """Show the instance in this state: pending, running, shutting-down, terminated, stopping or stopped."""
        self._command("state", instance, name)

    def terminate(self, instance: str) -> None:
        """Terminate the instance; it stays listed, and its address is free for another at once."""
        self._command("terminate", instance)

    def forget(self, instance: str) -> None:
        """Remove the instance as if it had never been."""
        self._command("forget", instance)

    def fault(
        self,
        action: str,
        faults: Iterable[tuple[str, int]],
        *,
        forever: bool = False,
        later_pages: bool = False,
        stall: float = 0.0,
    ) -> None:
        """Let the next calls of an action such as DescribeInstances fail, each with one `(code, HTTP status)`.

        `forever` makes the fault stay until `clear_faults`; `later_pages` spares the first page of a listing, which
        makes a truncated answer (see `page_size`); `stall` waits so many seconds first, also at most until
        `clear_faults`. An empty code only stalls, and then the call succeeds.
        """
        common = {"forever": forever, "later_pages": later_pages, "stall": stall}
        self._command("fault", action, [{"code": code, "status": status, **common} for code, status in faults])

    def clear_faults(self) -> None:
        """Let every call succeed again, those that stall now included."""
        self._command("clear-faults")

    def page_size(self, reservations: int) -> None:
        """Cut DescribeInstances into pages of so many launches each; 0 does as the client asks."""
        self._command("page-size", reservations)

    def calls(self, action: str) -> int:
        """Count the calls of an action so far, failed ones included."""
        return int(str(self._command("calls", action)))

    def queue(self, name: str, *, region: str = REGION) -> str:
        """Make an SQS queue and return its URL."""
        return str(self._command("create-queue", region, name, self.endpoint))

    def send(self, name: str, body: str, *, region: str = REGION) -> None:
        """Put a message into a queue."""
        self._command("send", region, name, body)

    def event(self, name: str, instance: str, state: str) -> None:
        """Put a state-change notification into a queue, as an EventBridge rule does."""
        detail = {"instance-id": instance, "state": state}
        kind = "EC2 Instance State-change Notification"
        self.send(name, json.dumps({"version": "0", "detail-type": kind, "source": "aws.ec2", "detail": detail}))

    def left(self, name: str, *, region: str = REGION) -> int:
        """Count the messages of a queue that nobody has deleted."""
        return int(str(self._command("left", region, name)))

    def _command(self, name: str, *args: object, **kwargs: object) -> object:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.sock = self._machine.connect("127.0.0.1", self._port, timeout=10)
            connection.request("POST", f"/_lab/{name}", json.dumps({"args": args, "kwargs": kwargs}))
            response = connection.getresponse()
            answer: object = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise LabError(f"cloud refuses {name}{args}: {answer}")
        return answer

    def _answers(self) -> bool:
        try:
            return bool(self._command("health"))
        except OSError:
            return False
