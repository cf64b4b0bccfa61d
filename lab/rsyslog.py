"""Debian's rsyslog as a collector: it takes messages over TLS, and writes each one as a line of a file."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from lab.certificates import make_certificate
from lab.processes import LabError, Process, until

if TYPE_CHECKING:
    from pathlib import Path

    from lab.namespaces import Machine

ADDRESS = "127.0.0.1"
_CONFIGURATION = """\
global(
  workDirectory="{folder}"
  defaultNetstreamDriver="ossl"
  defaultNetstreamDriverCAFile="{folder}/collector.pem"
  defaultNetstreamDriverCertFile="{folder}/collector.pem"
  defaultNetstreamDriverKeyFile="{folder}/collector.key"
)
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon")
template(name="message" type="string" string="%syslogpriority-text% %msgid% %msg%\\n")
ruleset(name="audit") {{ action(type="omfile" file="{folder}/collected" template="message") }}
input(type="imtcp" address="{address}" port="{port}" ruleset="audit")
"""


class Rsyslog:
    """A collector on the loopback address of a machine."""

    def __init__(self, machine: Machine, folder: Path, port: int) -> None:
        self._machine = machine
        self._folder = folder
        self._port = port
        self._process: Process | None = None
        folder.mkdir()
        make_certificate(ADDRESS, self.ca, folder / "collector.key")
        text = _CONFIGURATION.format(folder=folder, address=ADDRESS, port=port)
        (folder / "rsyslog.conf").write_text(text)

    @property
    def ca(self) -> Path:
        """The certificate that verifies it."""
        return self._folder / "collector.pem"

    @property
    def url(self) -> str:
        """The URL for `[[audit_forward]]`."""
        return f"syslog+tls://{ADDRESS}:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        argv = ["rsyslogd", "-n", "-f", str(self._folder / "rsyslog.conf"), "-i", str(self._folder / "pid")]
        log = self._folder / "rsyslog.log"
        self._process = process = self._machine.popen(argv, log=log)
        until(lambda: process.poll() is not None or self._listens(), "rsyslog listens")
        if process.poll() is not None:
            raise LabError(f"rsyslog does not start: {log.read_text()[-800:]}")

    def stop(self) -> None:
        """Ask it to end; it writes what it has received."""
        if self._process is not None:
            self._process.end(patience=5)

    def messages(self) -> list[tuple[str, str, str]]:
        """Return the severity, the MSGID and the text of each message that it has written."""
        collected = self._folder / "collected"
        lines = collected.read_text().splitlines() if collected.exists() else []
        return [(parts[0], parts[1], parts[2].strip()) for parts in (line.split(" ", 2) for line in lines)]

    def _listens(self) -> bool:
        with suppress(OSError), self._machine.connect(ADDRESS, self._port, timeout=1.0):
            return True
        return False
