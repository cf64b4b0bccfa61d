"""The state in a PostgreSQL database, which several controllers share.

What protects the data is the term of each agent's lease (`store/cluster_database.py`): a write names the terms that its
member holds, and what is written under an earlier one is dropped. So a member that a partition has cut off cannot write
about an agent after another member has taken it over, even if it believes otherwise.

A lost connection costs one write, which the caller tries again; the next call connects again.
"""

import stat
import threading
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from tunnelmgr.core.cluster import DatabaseFacts
from tunnelmgr.core.ownership import LEASE_SECONDS
from tunnelmgr.core.persistence import Changes, StoredState
from tunnelmgr.core.world import Record
from tunnelmgr.errors import SchemaError, StoreError
from tunnelmgr.store.rows import (
    SECRET_SCHEMA,
    SELECT_AGENTS,
    SELECT_SECRET,
    SELECT_SEEDS,
    agent_values,
    new_secret,
    pin_values,
    quarantine_values,
    seed_values,
    stored_state,
)

log = structlog.get_logger(__name__)

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
STATEMENT_TIMEOUT: Final = "10s"
CLOSE_PATIENCE: Final = 1.0
"""Seconds that `close` waits for a call in another thread."""

_AGENT = """
INSERT INTO agent VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET
    incarnation = excluded.incarnation, source = excluded.source, "group" = excluded."group", name = excluded.name,
    addresses = excluded.addresses, port = excluded.port, labels = excluded.labels, changed = excluded.changed,
    present = excluded.present, history = excluded.history, written = pg_current_xact_id()
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
WHERE seed.holder IS NULL OR seed.holder = excluded.holder
"""
_HELD = """
SELECT lease.id FROM lease JOIN unnest(%s::text[], %s::bigint[]) AS known (id, term) USING (id, term)
WHERE kind = 'agent' AND holder = %s FOR SHARE OF lease
"""
_LIVING = "SELECT name, rules FROM member WHERE heartbeat > now() - make_interval(secs => %s) ORDER BY name"
_SECRET = "INSERT INTO secret (value) VALUES (%s) ON CONFLICT DO NOTHING"  # noqa: S105 (a statement)
_VERSION = "SELECT coalesce(max(version), 0) FROM schema_version"


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
        self._guarded(migrate)

    def load(self) -> StoredState:
        """Return everything that was written; raises StoreError."""
        return self._guarded(_memory)

    def write(self, changes: Changes) -> None:
        """Write all of `changes` or nothing; raises StoreError, after which the same call may be tried again."""
        self._guarded(lambda connection: self._write(connection, changes))

    def close(self) -> None:
        """Close the connection, unless a call that hangs still uses it."""
        if self._use.acquire(timeout=CLOSE_PATIENCE):
            self._disconnect()
            self._use.release()

    def _guarded(self, act: Callable[[Connection], Answer]) -> Answer:
        with self._use:
            try:
                return act(self._connected())
            except (psycopg.Error, OSError, UnicodeError) as failed:
                self._disconnect()
                raise StoreError(f"{described(self._url)}: {error_text(failed)}") from failed
            except StoreError:
                self._disconnect()
                raise

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._url, self._password_file)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _write(self, connection: Connection, changes: Changes) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            held = self._held(cursor, changes)
            _write_records(cursor, [record for record in changes.records if held is None or record.agent.id in held])
            forgotten = [id_ for id_ in changes.forgotten if held is None or id_ in held]
            cursor.execute("DELETE FROM agent WHERE id = ANY(%s)", (forgotten,))
            cursor.execute("DELETE FROM lease WHERE kind = 'agent' AND id = ANY(%s)", (forgotten,))
            cursor.executemany(_SEED, [seed_values(seed) for seed in changes.seeds])
            cursor.execute("DELETE FROM seed WHERE id = ANY(%s)", (list(changes.spent),))
            if changes.secret:
                cursor.execute("UPDATE secret SET value = %s", (changes.secret,))
            cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, self._name))

    def _held(self, cursor: psycopg.Cursor[dict[str, Any]], changes: Changes) -> frozenset[str] | None:
        """Return the agents whose leases this member still holds, and keep them so until the transaction ends.

        None means that no lease is needed: no member is alive, and this is a command that writes a whole state.
        """
        if changes.terms is None:
            living = [row["name"] for row in cursor.execute(_LIVING, (LEASE_SECONDS,)).fetchall()]
            if living:
                raise StoreError(f"{described(self._url)}: in use by {', '.join(living)}; stop these controllers first")
            return None
        ids, terms = list(changes.terms), list(changes.terms.values())
        held = frozenset(row["id"] for row in cursor.execute(_HELD, (ids, terms, self._name)).fetchall())
        if lost := changes.terms.keys() - held:
            log.warning("write dropped", reason="another member holds these agents", agents=sorted(lost)[:10])
        return held


def read_postgres(url: str, password_file: Path | None = None) -> StoredState:
    """Return what a database holds, also while a controller uses it; raises StoreError."""
    try:
        with connect(url, password_file) as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return _memory(connection)
    except psycopg.errors.UndefinedTable as empty:
        raise StoreError(f"{described(url)}: the database holds no state; check controller.state") from empty
    except (psycopg.Error, OSError) as failed:
        raise StoreError(f"{described(url)}: {error_text(failed)}") from failed


def database_facts(url: str, password_file: Path | None = None) -> DatabaseFacts:
    """Return the server's version and clock, and which controllers use the state in it; raises StoreError."""
    try:
        with connect(url, password_file) as connection:
            may = value(connection, "SELECT has_schema_privilege(current_schema(), 'CREATE')")
            known = value(connection, "SELECT to_regclass('member') IS NOT NULL")
            living = connection.execute(_LIVING, (LEASE_SECONDS,)).fetchall() if known else []
            now = float(value(connection, "SELECT extract(epoch FROM clock_timestamp())"))
            version = connection.info.server_version // 10000
    except (psycopg.Error, OSError) as failed:
        raise StoreError(f"{described(url)}: {error_text(failed)}") from failed
    if not may and not known:
        raise StoreError(f"{described(url)}: this user may not create tables; GRANT CREATE on the schema to it")
    names = ", ".join(row["name"] for row in living)
    summary = f"{described(url)} answers, PostgreSQL {version}{f'; members: {names}' if names else ''}"
    return DatabaseFacts(summary, {row["name"]: row["rules"] for row in living}, now - time.time())


def connect(url: str, password_file: Path | None = None) -> Connection:
    """Connect; raises psycopg.Error or OSError. The password comes from its file or, by libpq, from `PGPASSFILE`."""
    options: dict[str, str] = dict(OPTIONS)
    if password_file is not None:
        options["password"] = _password_in(password_file)
    connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, **options)  # type: ignore[arg-type]
    connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'".encode())
    return connection


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
    version = int(value(connection, _VERSION))
    secret = connection.execute(SELECT_SECRET) if version >= SECRET_SCHEMA else ()
    return stored_state(connection.execute(SELECT_AGENTS), connection.execute(SELECT_SEEDS), secret)


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, and make the secret if there is none; controllers that start together agree."""
    with connection.transaction():
        _migrate(connection)
        connection.execute(_SECRET, (new_secret(),))


def _migrate(connection: Connection) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (APPLICATION, MIGRATING))
    connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL)")
    version = int(value(connection, _VERSION))
    folder = files("tunnelmgr.store.migrations") / "postgresql"
    scripts = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda one: one.name)
    if version > len(scripts):
        raise SchemaError(f"the database was written by a newer tunnelmgr (schema {version}, known {len(scripts)})")
    for number, script in enumerate(scripts[version:], start=version + 1):
        connection.execute(script.read_text(encoding="utf-8").encode())
        connection.execute("INSERT INTO schema_version VALUES (%s)", (number,))


def value(connection: Connection, query: str, values: Sequence[object] = ()) -> Any:  # noqa: ANN401 - any SQL value
    """Return the first column of the first row."""
    row = connection.execute(query.encode(), values).fetchone()
    if row is None:
        raise StoreError(f"no answer to: {query}")
    return next(iter(row.values()))


def error_text(failed: Exception) -> str:
    """Return an error of libpq or of the system in one line."""
    return " ".join(str(failed).split()) or type(failed).__name__
