"""The state in a PostgreSQL database, for a controller whose machine may be lost.

One controller writes at a time. An advisory lock of the database session keeps a second one from starting; what
protects the data is the term in table `owner`: a controller takes the next term when it starts, and every write checks
in its transaction that this term is still the last one. So a controller that a partition has cut off cannot write after
another has taken over, whatever it believes.

A lost connection costs one write, which the caller tries again; the next call connects again under the same term.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
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

from tunnelmgr.core.persistence import Changes, StoredState
from tunnelmgr.core.world import Record
from tunnelmgr.errors import SchemaError, StoreError
from tunnelmgr.store.rows import (
    SELECT_AGENTS,
    SELECT_SEEDS,
    agent_values,
    pin_values,
    quarantine_values,
    seed_values,
    stored_state,
)

Answer = TypeVar("Answer")
Connection = psycopg.Connection[dict[str, Any]]

APPLICATION: Final = 0x746E6C6D
"""`tnlm`: our class of advisory locks in a database."""
MIGRATING, OWNING = 1, 2
"""Our advisory locks."""
OPTIONS: Final = {
    "application_name": "tunnelmgr",
    "connect_timeout": "5",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}
"""So that a server that has gone without a word is noticed within seconds (libpq-connect, parameter key words)."""
STATEMENT_TIMEOUT: Final = "10s"
CLOSE_PATIENCE: Final = 1.0
"""Seconds that `close` waits for a call in another thread."""

_AGENT = """
INSERT INTO agent VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET
    incarnation = excluded.incarnation, source = excluded.source, "group" = excluded."group", name = excluded.name,
    addresses = excluded.addresses, port = excluded.port, labels = excluded.labels, changed = excluded.changed,
    present = excluded.present, history = excluded.history
"""
_PIN = """
INSERT INTO pin VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (agent) DO UPDATE SET
    incarnation = excluded.incarnation, method = excluded.method, keys = excluded.keys, detail = excluded.detail,
    possessed = excluded.possessed
"""
_QUARANTINE = """
INSERT INTO quarantine VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (agent) DO UPDATE SET
    since = excluded.since, code = excluded.code, message = excluded.message, disputed = excluded.disputed,
    examined = excluded.examined
"""
_SEED = """
INSERT INTO seed VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET
    "key" = excluded."key", expires = excluded.expires, holder = excluded.holder, incarnation = excluded.incarnation
"""
_TAKE_OVER = "UPDATE owner SET term = term + 1, name = %s, since = now() RETURNING term"


class PostgresStore:
    """Reads everything at the start and writes changes; blocks, so it is called through a thread.

    `url` is libpq's connection URI; `name` is the controller's, which others see.
    """

    def __init__(self, url: str, name: str, password_file: Path | None = None) -> None:
        self._url = url
        self._name = name
        self._password_file = password_file
        self._use = threading.Lock()
        self._connection: Connection | None = None
        self._term: int | None = None
        self._guarded(lambda _connection: None)

    def load(self) -> StoredState:
        """Return everything that was written; raises StoreError."""
        return self._guarded(_memory)

    def write(self, changes: Changes) -> None:
        """Write all of `changes` or nothing; raises StoreError, after which the same call may be tried again."""
        self._guarded(lambda connection: self._write(connection, changes))

    def close(self) -> None:
        """Close the connection, and so give the lock back, unless a call that hangs still uses it."""
        if self._use.acquire(timeout=CLOSE_PATIENCE):
            self._disconnect()
            self._use.release()

    def _guarded(self, act: Callable[[Connection], Answer]) -> Answer:
        with self._use:
            try:
                return act(self._connected())
            except (psycopg.Error, OSError, UnicodeError) as failed:
                self._disconnect()
                raise StoreError(f"{described(self._url)}: {_message(failed)}") from failed
            except StoreError:
                self._disconnect()
                raise

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._url, self._password_file)
            self._connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
            self._take_ownership(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _take_ownership(self, connection: Connection) -> None:
        """Become the one that writes, or after a lost connection stay it; raises StoreError if another one is."""
        locked = _value(connection, "SELECT pg_try_advisory_lock(%s, %s)", (APPLICATION, OWNING))
        if self._term is not None:
            # The server may still hold the lock for our lost connection; the term decides.
            self._check_term(connection)
            return
        if not locked:
            owner = connection.execute("SELECT name, since FROM owner").fetchone() or {}
            raise StoreError(
                f"{described(self._url)}: controller {owner.get('name')!r} uses this state since "
                f"{owner.get('since'):%Y-%m-%d %H:%M:%S %Z}; stop it first, or give this one a state of its own"
            )
        with connection.transaction():
            _migrate(connection)
            self._term = int(_value(connection, _TAKE_OVER, (self._name,)))

    def _check_term(self, connection: Connection) -> None:
        """Raise StoreError unless ours is the last term; in a transaction it stays so until its end."""
        owner = connection.execute("SELECT term, name FROM owner FOR SHARE").fetchone()
        if owner is None or owner["term"] != self._term:
            name = owner["name"] if owner else "another"
            raise StoreError(
                f"{described(self._url)}: controller {name!r} has taken over this state; stop this controller"
            )

    def _write(self, connection: Connection, changes: Changes) -> None:
        with connection.transaction():
            self._check_term(connection)
            with connection.cursor() as cursor:
                _write_records(cursor, changes.records)
                cursor.execute("DELETE FROM agent WHERE id = ANY(%s)", (list(changes.forgotten),))
                cursor.executemany(_SEED, [seed_values(seed) for seed in changes.seeds])
                cursor.execute("DELETE FROM seed WHERE id = ANY(%s)", (list(changes.spent),))


def read_postgres(url: str, password_file: Path | None = None) -> StoredState:
    """Return what a database holds, also while a controller uses it; raises StoreError."""
    try:
        with connect(url, password_file) as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return _memory(connection)
    except psycopg.errors.UndefinedTable as empty:
        raise StoreError(f"{described(url)}: the database holds no state; check controller.state") from empty
    except (psycopg.Error, OSError) as failed:
        raise StoreError(f"{described(url)}: {_message(failed)}") from failed


def database_facts(url: str, password_file: Path | None = None) -> str:
    """Return the server's version, and since when which controller uses the state in it; raises StoreError."""
    try:
        with connect(url, password_file) as connection:
            may = _value(connection, "SELECT has_schema_privilege(current_schema(), 'CREATE')")
            known = _value(connection, "SELECT to_regclass('owner') IS NOT NULL")
            owner = connection.execute("SELECT name, since FROM owner").fetchone() if known else None
            version = connection.info.server_version // 10000
    except (psycopg.Error, OSError) as failed:
        raise StoreError(f"{described(url)}: {_message(failed)}") from failed
    if not may and owner is None:
        raise StoreError(f"{described(url)}: this user may not create tables; GRANT CREATE on the schema to it")
    last = f"; last used by controller {owner['name']}" if owner and owner["name"] else ""
    return f"{described(url)} answers, PostgreSQL {version}{last}"


def connect(url: str, password_file: Path | None = None) -> Connection:
    """Connect; raises psycopg.Error or OSError. The password comes from its file or, by libpq, from `PGPASSFILE`."""
    options: dict[str, str] = dict(OPTIONS)
    if password_file is not None:
        options["password"] = _password_in(password_file)
    return psycopg.connect(url, autocommit=True, row_factory=dict_row, **options)  # type: ignore[arg-type]


def _password_in(file: Path) -> str:
    if file.stat().st_mode & stat.S_IRWXO:
        raise StoreError(f"{file}: other users can read the password; run: chmod 600 {file}")
    return file.read_text(encoding="utf-8").strip()


def described(url: str) -> str:
    """Return a database's URL for messages, without its parameters."""
    known = conninfo_to_dict(url)
    place = ":".join(str(known[key]) for key in ("host", "port") if key in known)
    return f"postgresql://{place}/{known.get('dbname', '')}"


def _write_records(cursor: psycopg.Cursor[dict[str, Any]], records: Sequence[Record]) -> None:
    if not records:
        return
    ids = [record.agent.id for record in records]
    cursor.executemany(_AGENT, [agent_values(record) for record in records])
    pins = [pin for record in records if (pin := pin_values(record)) is not None]
    marks = [mark for record in records if (mark := quarantine_values(record)) is not None]
    # One statement for each table, however many agents have lost their pin or their quarantine.
    cursor.execute("DELETE FROM pin WHERE agent = ANY(%s) AND NOT agent = ANY(%s)", (ids, [pin[0] for pin in pins]))
    cursor.execute(
        "DELETE FROM quarantine WHERE agent = ANY(%s) AND NOT agent = ANY(%s)", (ids, [mark[0] for mark in marks])
    )
    cursor.executemany(_PIN, pins)
    cursor.executemany(_QUARANTINE, marks)


def _memory(connection: Connection) -> StoredState:
    return stored_state(connection.execute(SELECT_AGENTS).fetchall(), connection.execute(SELECT_SEEDS).fetchall())


def _migrate(connection: Connection) -> None:
    """Bring the schema up to date, in the transaction that is open."""
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (APPLICATION, MIGRATING))
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL)")
    version = int(_value(connection, "SELECT coalesce(max(version), 0) FROM schema_version"))
    folder = files("tunnelmgr.store.migrations") / "postgresql"
    scripts = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda one: one.name)
    if version > len(scripts):
        raise SchemaError(f"the database was written by a newer tunnelmgr (schema {version}, known {len(scripts)})")
    for number, script in enumerate(scripts[version:], start=version + 1):
        connection.execute(script.read_text(encoding="utf-8").encode())
        connection.execute("INSERT INTO schema_version VALUES (%s)", (number,))


def _value(connection: Connection, query: str, values: Sequence[object] = ()) -> Any:  # noqa: ANN401 - any SQL value
    row = connection.execute(query.encode(), values).fetchone()
    if row is None:
        raise StoreError(f"no answer to: {query}")
    return next(iter(row.values()))


def _message(failed: Exception) -> str:
    return " ".join(str(failed).split()) or type(failed).__name__
