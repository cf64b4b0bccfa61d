"""Connections to PostgreSQL: how they are made, made again after a loss, and what their errors say.

A lost connection costs one call, which the caller tries again; the next call connects again.
"""

import stat
import threading
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from tunnelmgr.errors import SchemaError, StoreError
from tunnelmgr.store.rows import new_secret

Answer = TypeVar("Answer")
Connection = psycopg.Connection[dict[str, Any]]

APPLICATION: Final = 0x746E6C6D
"""`tnlm`: our class of advisory locks in a database."""
MIGRATING: Final = 0
"""The lock for migrating the schema. All others belong to members, by the numbers of their sessions."""
CHANNEL: Final = "tunnelmgr"
"""Where members are notified of changes (NOTIFY)."""
OPTIONS: Final = {
    "application_name": "tunnelmgr",
    "connect_timeout": "5",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}
"""So that a server that has gone without a word is noticed within seconds (libpq-connect, parameter key words)."""
SESSION: Final = {
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "3s",
    "tcp_user_timeout": "5s",
    "tcp_keepalives_idle": "5s",
    "tcp_keepalives_interval": "2s",
    "tcp_keepalives_count": "3",
}
"""The server's side of it: a client that is cut off or frozen loses its session, and with it the locks that it holds.

With the server's defaults, a partition in the middle of a transaction keeps its rows locked for two hours, so that
neither that member nor the heirs of its agents can write (runtime-config-connection, runtime-config-client).
"""
CLOSE_PATIENCE: Final = 1.0
"""Seconds that `close` waits for a call in another thread."""

_SECRET = "INSERT INTO secret (value) VALUES (%s) ON CONFLICT DO NOTHING"  # noqa: S105 (a statement)
CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())"
VERSION: Final = "SELECT coalesce(max(version), 0) FROM schema_version"


class Database:
    """One connection at a time, which `call` makes if there is none; `url` is libpq's connection URI.

    `connected` is called with each new connection.
    """

    def __init__(
        self, url: str, password_file: Path | None = None, connected: Callable[[Connection], None] = lambda _: None
    ) -> None:
        self.url = url
        self._password_file = password_file
        self._connected = connected
        self._use = threading.Lock()
        self._connection: Connection | None = None

    def call(self, act: Callable[[Connection], Answer]) -> Answer:
        """Return what `act` returns; raises StoreError, and then the connection is closed."""
        with self._use:
            try:
                if self._connection is None:
                    self._connection = connect(self.url, self._password_file)
                    self._connected(self._connection)
                return act(self._connection)
            except (psycopg.Error, OSError, UnicodeError) as failed:
                self._disconnect()
                raise StoreError(f"{described(self.url)}: {error_text(failed)}") from failed
            except StoreError:
                self._disconnect()
                raise

    def close(self) -> None:
        """Close the connection, unless a call that hangs still uses it."""
        if self._use.acquire(timeout=CLOSE_PATIENCE):
            self._disconnect()
            self._use.release()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def connect(url: str, password_file: Path | None = None) -> Connection:
    """Connect; raises psycopg.Error or OSError. The password comes from its file or, by libpq, from `PGPASSFILE`."""
    options: dict[str, str] = dict(OPTIONS)
    if password_file is not None:
        options["password"] = _password_in(password_file)
    connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, **options)  # type: ignore[arg-type]
    settings = ", ".join(f"set_config('{name}', '{setting}', false)" for name, setting in SESSION.items())
    connection.execute(f"SELECT {settings}".encode())
    return connection


def _password_in(file: Path) -> str:
    if file.stat().st_mode & stat.S_IRWXO:
        raise StoreError(f"{file}: other users can read the password; run: chmod 600 {file}")
    return file.read_text(encoding="utf-8").strip()


def described(url: str) -> str:
    """Return a database's URL for messages: its hosts, each with its port if it has one, without its parameters."""
    known = conninfo_to_dict(url)
    hosts = str(known.get("host") or known.get("hostaddr") or "").split(",")
    ports = str(known.get("port") or "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    hosts = [f"[{host}]" if ":" in host else host for host in hosts]
    places = (f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False))
    return f"postgresql://{','.join(places)}/{known.get('dbname', '')}"


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, and make the secret if there is none; controllers that start together agree."""
    with connection.transaction():
        _migrate(connection)
        connection.execute(_SECRET, (new_secret(),))


def _migrate(connection: Connection) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (APPLICATION, MIGRATING))
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL)")
    version = int(value(connection, VERSION))
    folder = files("tunnelmgr.store.migrations") / "postgresql"
    scripts = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda one: one.name)
    if version > len(scripts):
        raise SchemaError(
            f"the database was written by a newer tunnelmgr (schema {version}, known {len(scripts)}); install that "
            "version again, or use another database and import a backup (`tunnelmgr state import`)"
        )
    for number, script in enumerate(scripts[version:], start=version + 1):
        connection.execute(script.read_text(encoding="utf-8").encode())
        connection.execute("INSERT INTO schema_version VALUES (%s)", (number,))


def value(connection: Connection, query: str, values: Sequence[object] = ()) -> Any:  # noqa: ANN401 - any SQL value
    """Return the first column of the first row."""
    row = connection.execute(query.encode(), values).fetchone()
    if row is None:
        raise StoreError(f"no answer to: {query}")
    return next(iter(row.values()))


def execute_rows(cursor: psycopg.Cursor[dict[str, Any]], statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Execute a statement that takes one array for each column of `rows`; does nothing without rows.

    Not `executemany`, which sends its statements as a pipeline: if a client is frozen or cut off within one, the server
    does not count that as idle in a transaction, and its locks stay.
    """
    if rows:
        cursor.execute(statement.encode(), [list(column) for column in zip(*rows, strict=True)])


def error_text(failed: Exception) -> str:
    """Return an error of libpq or of the system in one line."""
    return " ".join(str(failed).split()) or type(failed).__name__
