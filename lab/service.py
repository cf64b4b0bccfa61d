"""A stand-in for a cloud's API as a process on a machine of the lab, commanded over HTTP under `/_lab/`."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tunnelmgr
from lab.namespaces import Machine
from lab.processes import LabError, Process, until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

COMMANDS = "/_lab/"


class Service:
    """A module run with `--listen 127.0.0.1:PORT` on a machine of the lab, or of the host when none is given.

    It answers `POST /_lab/NAME` with the command's result as JSON, and the command `health` with true.
    """

    def __init__(self, module: str, machine: Machine | None, port: int, folder: Path) -> None:
        self._module = module
        self._machine = machine or Machine()
        self._folder = folder
        self._log = folder / f"{self.name}.log"
        self._process: Process | None = None
        self._port = port

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        return self._port

    @property
    def name(self) -> str:
        """The module's own name."""
        return self._module.rpartition(".")[2]

    def start(self, environment: Mapping[str, str] | None = None) -> Self:
        """Start the process and wait until it answers."""
        self._machine.require_free(self.port)
        self._folder.mkdir(parents=True, exist_ok=True)
        serve = [sys.executable, "-m", self._module, "--listen", f"127.0.0.1:{self.port}"]
        env = {**(environment or {}), "PYTHONPATH": str(Path(tunnelmgr.__file__).parents[1])}
        self._process = process = self._machine.popen(serve, log=self._log, env=env)
        until(lambda: process.poll() is not None or self._answers(), f"{self.name} answers on {self.port}", timeout=30)
        if process.poll() is not None:
            raise LabError(f"{self.name} does not start on port {self.port}: {self.log()[-800:]}")
        return self

    def stop(self) -> None:
        """End the process; what it knew is gone with it."""
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
        """Return what the process has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def command(self, name: str, *args: object, **kwargs: object) -> object:
        """Give a command and return its result; raise LabError where it is refused."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.sock = self._machine.connect("127.0.0.1", self.port, timeout=10)
            connection.request("POST", f"{COMMANDS}{name}", json.dumps({"args": args, "kwargs": kwargs}))
            response = connection.getresponse()
            answer: object = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise LabError(f"{self.name} refuses {name}{args}: {answer}")
        return answer

    def _answers(self) -> bool:
        try:
            return bool(self.command("health"))
        except OSError:
            return False


def obey(commands: Mapping[str, Callable[..., object]], name: str, body: bytes) -> tuple[int, bytes]:
    """Carry out a command that `Service.command` sent; return the status and the body of the answer."""
    if name not in commands:
        return http.HTTPStatus.NOT_FOUND, b"null"
    asked = json.loads(body or b"{}")
    try:
        result = commands[name](*asked.get("args", ()), **asked.get("kwargs", {}))
    except (KeyError, TypeError, ValueError) as wrong:
        return http.HTTPStatus.BAD_REQUEST, json.dumps(f"{type(wrong).__name__}: {wrong}").encode()
    return http.HTTPStatus.OK, json.dumps(result).encode()
