"""A server process on a machine of the lab: it starts, answers on one TCP port, and is stopped or killed."""

from __future__ import annotations

import http.client
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from lab.namespaces import Machine
from lab.processes import LabError, Process, until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType


class Service(ABC):
    """A program that serves HTTP on a machine of the lab, or on the host if no machine is given."""

    def __init__(self, name: str, machine: Machine | None, port: int, folder: Path) -> None:
        self.name = name
        self._machine = machine or Machine()
        self._port = port
        self._folder = folder
        self._log = folder / f"{name}.log"
        self._process: Process | None = None

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self._port

    def start(self, environment: Mapping[str, str] | None = None) -> Self:
        """Start the process and wait until it answers."""
        self._machine.require_free(self._port)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = process = self._machine.popen(self._argv(), log=self._log, env=environment)
        until(
            lambda: process.poll() is not None or self._answers(),
            f"{self.name} answers on port {self.port}",
            timeout=30,
        )
        if process.poll() is not None:
            raise LabError(f"{self.name} does not start on port {self.port}: {self.log()[-800:]}")
        return self

    def stop(self) -> None:
        """Ask the process to end, and kill it after 2 s."""
        self._end(patience=2)

    def kill(self) -> None:
        """Kill the process at once."""
        self._end()

    def log(self) -> str:
        """Return what the process has printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _argv(self) -> Sequence[str]:
        """Return the program and its arguments; called once per start."""

    @abstractmethod
    def _answers(self) -> bool:
        """Report whether the service answers requests."""

    def _request(self, method: str, path: str, body: str = "", *, timeout: float = 10.0) -> tuple[int, bytes]:
        """Send one request from the service's own machine; return the status and the body of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            connection.sock = self._machine.connect("127.0.0.1", self._port, timeout=timeout)
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _end(self, *, patience: float = 0.0) -> None:
        if self._process:
            self._process.end(patience=patience)
            self._process = None
