"""A real docker-registry that stores on disk and listens on loopback."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Self

from lab.namespaces import Machine
from lab.processes import LabError, Process, until

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Registry:
    """docker-registry on one machine of the lab, or on the host when no machine is given.

    `public_url` is the setting `http.host`, which it names in every Location instead of the host that it was asked by.
    """

    def __init__(  # noqa: PLR0913 - what a registry can be set up with
        self,
        machine: Machine | None,
        folder: Path,
        *,
        port: int = 5000,
        host: str = "127.0.0.1",
        read_only: bool = False,
        public_url: str = "",
    ) -> None:
        self._machine = machine or Machine()
        self._folder = folder
        self._address = (host, port)
        self._read_only = read_only
        self._public_url = public_url
        self._log = folder / "registry.log"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where it answers, as seen from its own machine."""
        host, port = self._address
        return f"http://{host}:{port}"

    def start(self) -> Self:
        """Start it and wait until it answers; what it stored earlier is still there."""
        self._machine.require_free(self._address[1])
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "registry.json"  # JSON is YAML too
        settings.write_text(json.dumps(self._settings()))
        self._process = process = self._machine.popen(["docker-registry", "serve", str(settings)], log=self._log)
        until(lambda: process.poll() is not None or self._answers(), f"registry answers on {self.url}")
        if process.poll() is not None:
            raise LabError(f"registry does not start on {self.url}: {self.log()[-800:]}")
        return self

    def stop(self) -> None:
        """Stop it; the images stay on disk."""
        if self._process:
            self._process.end(patience=2)
            self._process = None

    def kill(self) -> None:
        """End it without a last word."""
        if self._process:
            self._process.end()
            self._process = None

    def log(self) -> str:
        """Its log, which holds one line for each request served."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _settings(self) -> dict[str, object]:
        """See https://distribution.github.io/distribution/about/configuration/."""
        host, port = self._address
        return {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._folder / "images")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}, "readonly": {"enabled": self._read_only}},
            },
            "http": {"addr": f"{host}:{port}", "secret": "lab"}
            | ({"host": self._public_url} if self._public_url else {}),
        }

    def _answers(self) -> bool:
        host, port = self._address
        connection = http.client.HTTPConnection(host, port, timeout=2)
        try:
            connection.sock = self._machine.connect("127.0.0.1" if host in {"", "0.0.0.0"} else host, port, timeout=2)  # noqa: S104
            connection.request("GET", "/v2/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()
