"""Real PostgreSQL servers: on a unix socket, on request also on TCP with TLS on a machine of the lab, and replicas."""

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from lab.certificates import make_certificate
from lab.namespaces import Machine, Namespace
from lab.processes import LabError, until

_DEBIAN = Path("/usr/lib/postgresql")
_FAST = "-c fsync=off -c full_page_writes=off"
"""The server's data are thrown away with its folder."""
_PORT: Final = 5432
_REMOTE_CLIENTS: Final = """
hostssl all all 10.77.0.0/24 trust
hostssl replication all 10.77.0.0/24 trust
"""


class Postgres:
    """A server for tests; enter it to start it. As root it runs as the user `postgres`, because it refuses root.

    It listens on a unix socket in its folder, which programs on every machine of the lab reach. With a `host` it runs
    on that machine, and listens on its address too, with TLS only.
    """

    def __init__(self, folder: Path, host: Namespace | None = None) -> None:
        self.folder = folder
        self.host = host
        self.certificate = folder / "server.crt"
        self._machine = host or Machine()
        self._data = folder / "data"
        self._key = folder / "server.key"

    @property
    def url(self) -> str:
        """The URL, on the unix socket, of the database that the server begins with."""
        return f"postgresql:///postgres?host={self.folder}&user=postgres"

    @property
    def ip(self) -> str:
        """The address of the machine that it runs on."""
        if self.host is None:
            raise LabError("this server listens on a unix socket only")
        return self.host.ip

    def __enter__(self) -> Self:
        """Create the database and start the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.host is not None:
            make_certificate(self.host.ip, self.certificate, self._key)
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, "postgres")
        self._create()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server, unless it has been stopped or has ended with its machine."""
        if self._machine.run(self._command("pg_ctl", "-D", str(self._data), "status")).returncode == 0:
            self.stop()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-c unix_socket_directories={self.folder} {_FAST}"
        if self.host is None:
            options += " -c listen_addresses=''"
        else:
            options += f" -c listen_addresses={self.host.ip} -c ssl=on"
            options += f" -c ssl_cert_file={self.certificate} -c ssl_key_file={self._key}"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop the server at once, as a crash would."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def query(self, statement: str) -> str:
        """Execute a statement, and return its rows, one per line."""
        return self._run("psql", "-XAtq", "-h", str(self.folder), "-U", "postgres", "-c", statement).strip()

    def commit_only_with(self, replica: str) -> None:
        """Acknowledge no commit that the replica of this name has not written (synchronous replication)."""
        self.query(f"ALTER SYSTEM SET synchronous_standby_names = '{replica}'")
        self.query("SELECT pg_reload_conf()")
        until(
            lambda: self.query("SELECT sync_state FROM pg_stat_replication") == "sync",
            "the replica is synchronous",
            timeout=20,
        )

    def _create(self) -> None:
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
        if self.host is not None:
            with (self._data / "pg_hba.conf").open("a") as access:
                access.write(_REMOTE_CLIENTS)

    def _run(self, program: str, *arguments: str) -> str:
        return self._machine.run(self._command(program, *arguments), timeout=60, check=True).stdout

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(_program(program)), *arguments]
        return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


class Replica(Postgres):
    """A server that follows another one, which is on a machine of the lab, until it is promoted."""

    NAME: Final = "replica"
    """By which the primary knows it."""

    def __init__(self, folder: Path, host: Namespace, primary: Postgres) -> None:
        super().__init__(folder, host)
        self._primary = primary

    def promote(self) -> None:
        """Accept writes; return when it does."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "promote")

    def _create(self) -> None:
        source = f"host={self._primary.ip} port={_PORT} user=postgres application_name={self.NAME}"
        source += f" sslmode=verify-full sslrootcert={self._primary.certificate}"
        self._run("pg_basebackup", "-D", str(self._data), "-R", "-X", "stream", "-c", "fast", "-d", source)


def remote_url(roots: Path, *servers: Postgres) -> str:
    """Return the URL of the one among these servers that accepts writes, with TLS that verifies it.

    `roots` is the file to write the servers' certificates to.
    """
    roots.write_text("".join(server.certificate.read_text() for server in servers))
    hosts = ",".join(f"{server.ip}:{_PORT}" for server in servers)
    url = f"postgresql://postgres@{hosts}/postgres?sslmode=verify-full&sslrootcert={roots}"
    return f"{url}&target_session_attrs=read-write" if len(servers) > 1 else url


def _program(name: str) -> Path:
    """Return the newest installed PostgreSQL's program; Debian keeps them out of PATH."""
    for folder in sorted(_DEBIAN.glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return folder / name
    found = shutil.which(name)
    if found is None:
        raise LabError(f"{name} is missing; install the package postgresql")
    return Path(found)
