"""A stand-in for a cloud's API as a process on a machine of the lab, controlled over HTTP under `/_lab/`."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tunnelmgr
from lab.processes import LabError
from lab.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lab.namespaces import Machine

COMMANDS = "/_lab/"


class CloudService(Service):
    """A module of the lab, run with `--listen 127.0.0.1:PORT`.

    It answers `POST /_lab/NAME` with the command's result as JSON, and the command `health` with true. A restarted
    process has forgotten everything.
    """

    def __init__(self, module: str, machine: Machine | None, port: int, folder: Path) -> None:
        super().__init__(module.rpartition(".")[2], machine, port, folder)
        self._module = module

    def start(self, environment: Mapping[str, str] | None = None) -> Self:
        """Start the process and wait until it answers."""
        return super().start({**(environment or {}), "PYTHONPATH": str(Path(tunnelmgr.__file__).parents[1])})

    def command(self, name: str, *args: object, **kwargs: object) -> object:
        """Send a command and return its result; raises LabError if it is refused."""
        status, body = self._request("POST", f"{COMMANDS}{name}", json.dumps({"args": args, "kwargs": kwargs}))
        answer: object = json.loads(body)
        if status != http.HTTPStatus.OK:
            raise LabError(f"{self.name} refuses {name}{args}: {answer}")
        return answer

    def _argv(self) -> Sequence[str]:
        return [sys.executable, "-m", self._module, "--listen", self._listen()]

    def _listen(self) -> str:
        """Return where it listens: on loopback, which `command` uses."""
        return f"127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        try:
            return bool(self.command("health"))
        except OSError:
            return False


def run_command(commands: Mapping[str, Callable[..., object]], name: str, body: bytes) -> tuple[int, bytes]:
    """Run a command that `CloudService.command` sent; return the status and the body of the response."""
    if name not in commands:
        return http.HTTPStatus.NOT_FOUND, b"null"
    request = json.loads(body or b"{}")
    try:
        result = commands[name](*request.get("args", ()), **request.get("kwargs", {}))
    except (KeyError, TypeError, ValueError) as wrong:
        return http.HTTPStatus.BAD_REQUEST, json.dumps(f"{type(wrong).__name__}: {wrong}").encode()
    return http.HTTPStatus.OK, json.dumps(result).encode()
