"""A real PostgreSQL server with a folder of its own, on a unix socket in that folder."""

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.processes import LabError, run

_DEBIAN = Path("/usr/lib/postgresql")
_FAST = "-c fsync=off -c full_page_writes=off"
"""The server's data are thrown away with its folder."""


class Postgres:
    """A server for tests; enter it to start it. As root it runs as the user `postgres`, because it refuses root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"

    @property
    def url(self) -> str:
        """The URL of the database that the server begins with."""
        return f"postgresql:///postgres?host={self.folder}&user=postgres"

    def __enter__(self) -> Self:
        """Create the database and start the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} {_FAST}"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop the server at once, as a crash would."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(_program(program)), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        run(command, timeout=60, check=True)


def _program(name: str) -> Path:
    """Return the newest installed PostgreSQL's program; Debian keeps them out of PATH."""
    for folder in sorted(_DEBIAN.glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return folder / name
    found = shutil.which(name)
    if found is None:
        raise LabError(f"{name} is missing; install the package postgresql")
    return Path(found)
