"""The layer between a client and moto: console output, faults, small pages, and the commands under `/_lab/`."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import Counter
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

from lab.cloud_service import COMMANDS, run_command
from lab.ec2.fleet import Fleet
from lab.ec2.queues import Queues
from lab.faults.api import Fault, Faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_FORM = "application/x-www-form-urlencoded"
_EMPTY = b"""\
<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>lab</requestId><reservationSet/>\
</DescribeInstancesResponse>"""


class Ec2Api:
    """A WSGI application around moto's."""

    def __init__(self, moto: WSGIApplication) -> None:
        self._moto = moto
        self._fleet = Fleet()
        self._queues = Queues()
        self._faults = Faults()
        self._consoles: dict[str, str] = {}
        self._page_size = 0  # 0: as the client requests
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._commands: Mapping[str, Callable[..., object]] = {
            "health": lambda: True,
            "launch": self._launch,
            "terminate": self._fleet.terminate,
            "forget": self._fleet.forget,
            "state": self._fleet.set_state,
            "move": self._fleet.move,
            "console": self._consoles.__setitem__,
            "fault": lambda action, faults: self._faults.add(action, [Fault(**fault) for fault in faults]),
            "clear-faults": self._faults.clear,
            "create-queue": self._queues.create,
            "send": self._queues.send,
            "left": self._queues.left,
            "page-size": self._set_page_size,
            "calls": lambda action: self._calls[action],
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ.get("PATH_INFO", "")
        if path.startswith(COMMANDS):
            return _answer(start_response, *self._run_command(path.removeprefix(COMMANDS), body), "application/json")
        is_form = environ.get("CONTENT_TYPE", "").startswith(_FORM)
        form = dict(parse_qsl(body.decode(), keep_blank_values=True)) if is_form else {}
        action = form.get("Action") or environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        with self._lock:
            self._calls[action] += 1
        by_id = "instance-id" in form.values() or "InstanceId.1" in form
        fault = self._faults.take(action, first_page="NextToken" not in form, by_id=by_id)
        if fault and fault.code:
            return _answer(start_response, fault.status, *_error(fault.code, in_xml=is_form))
        if fault and fault.empty:
            return _answer(start_response, HTTPStatus.OK, _EMPTY, "text/xml")
        instance = form.get("InstanceId", "")
        if action == "GetConsoleOutput" and self._fleet.knows(instance):
            return _answer(start_response, HTTPStatus.OK, self._console_output(instance), "text/xml")
        if self._page_size and action == "DescribeInstances" and "InstanceId.1" not in form:
            body = urlencode(form | {"MaxResults": str(self._page_size)}).encode()
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        return self._moto(environ, start_response)

    def _run_command(self, command: str, body: bytes) -> tuple[int, bytes]:
        with self._lock:
            return run_command(self._commands, command, body)

    def _launch(self, region: str, ip: str, tags: Mapping[str, str], *, public: bool, console: str | None) -> str:
        instance = self._fleet.launch(region, ip, tags, public=public)
        if console is not None:
            self._consoles[instance] = console
        return instance

    def _set_page_size(self, size: int) -> None:
        self._page_size = size

    def _console_output(self, instance: str) -> bytes:
        """See https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetConsoleOutput.html."""
        text = self._consoles.get(instance)  # EC2 omits the element while there is no output
        output = f"<output>{base64.b64encode(text.encode()).decode()}</output>" if text is not None else ""
        return (
            '<GetConsoleOutputResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>lab</requestId>'
            f"<instanceId>{escape(instance)}</instanceId><timestamp>{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}</timestamp>"
            f"{output}</GetConsoleOutputResponse>"
        ).encode()


def _error(code: str, *, in_xml: bool) -> tuple[bytes, str]:
    """Return an error in the form of EC2 (XML) or of the JSON services, and its content type."""
    if in_xml:
        error = f"<Code>{escape(code)}</Code><Message>injected by the lab</Message>"
        return (
            f"<Response><Errors><Error>{error}</Error></Errors><RequestID>lab</RequestID></Response>".encode(),
            "text/xml",
        )
    return json.dumps({"__type": code, "message": "injected by the lab"}).encode(), "application/x-amz-json-1.0"


def _answer(start_response: StartResponse, status: int, body: bytes, content_type: str) -> list[bytes]:
    start_response(f"{int(status)} Lab", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]
