"""The state in a PostgreSQL database, which several controllers share.

What protects the data is the term of each agent's lease (`store/cluster_database.py`): a write names the terms that its
member holds, and what is written under an earlier one is dropped. So a member that a partition has cut off cannot write
about an agent after another member has taken it over, even if it believes otherwise.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import structlog

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.cluster import DatabaseFacts
from tunnelmgr.core.ownership import LEASE_SECONDS
from tunnelmgr.core.persistence import Changes, StoredState
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.world import Record
from tunnelmgr.errors import StoreError
from tunnelmgr.store.database import (
    CHANNEL,
    CLOCK,
    VERSION,
    Connection,
    Database,
    connect,
    described,
    error_text,
    execute_rows,
    migrate,
    value,
)
from tunnelmgr.store.rows import (
    SECRET_SCHEMA,
    SELECT_AGENTS,
    SELECT_SECRET,
    SELECT_SEEDS,
    agent_values,
    pin_values,
    quarantine_values,
    seed_values,
    stored_state,
)

log = structlog.get_logger(__name__)

_AGENT = """
INSERT INTO agent SELECT * FROM unnest(
    %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::text[],
    %s::float8[], %s::float8[], %s::integer[], %s::text[]
)
ON CONFLICT (id) DO UPDATE SET
    incarnation = excluded.incarnation, source = excluded.source, "group" = excluded."group", name = excluded.name,
    addresses = excluded.addresses, port = excluded.port, labels = excluded.labels, changed = excluded.changed,
    present = excluded.present, history = excluded.history, written = pg_current_xact_id()
"""
_PIN = """
INSERT INTO pin
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
ON CONFLICT (agent) DO UPDATE SET
    incarnation = excluded.incarnation, method = excluded.method, keys = excluded.keys, detail = excluded.detail,
    possessed = excluded.possessed
"""
_QUARANTINE = """
INSERT INTO quarantine
SELECT * FROM unnest(%s::text[], %s::float8[], %s::text[], %s::text[], %s::text[], %s::integer[])
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


class PostgresStore:
    """Reads everything at the start and writes changes; blocks, so it is called through a thread.

    `url` is libpq's connection URI; `name` is the controller's, which others see.
    """

    def __init__(self, url: str, name: str, password_file: Path | None = None) -> None:
        self._name = name
        self._ahead = 0.0  # the database's clock minus our monotonic one
        self._database = Database(url, password_file, self._read_clock)
        self._database.call(migrate)

    def load(self) -> StoredState:
        """Return everything that was written; raises StoreError."""
        return self._database.call(_memory)

    def write(self, changes: Changes) -> frozenset[AgentId]:
        """Write all of `changes` or nothing; raises StoreError, after which the same call may be tried again.

        Returns the agents about which nothing was written: another member holds them, or has given their seed to
        another agent.
        """
        return self._database.call(lambda connection: self._write(connection, changes))

    def wall(self) -> float:
        """Return the time by the database's clock, as of the latest connection, so that all members have one time."""
        return time.monotonic() + self._ahead

    def close(self) -> None:
        """Close the connection, unless a call that hangs still uses it."""
        self._database.close()

    def _read_clock(self, connection: Connection) -> None:
        self._ahead = float(value(connection, CLOCK)) - time.monotonic()

    def _write(self, connection: Connection, changes: Changes) -> frozenset[AgentId]:
        with connection.transaction(), connection.cursor() as cursor:
            dropped = self._not_held(cursor, changes) | _with_seeds_of_others(cursor, changes.seeds)
            _write_records(cursor, [record for record in changes.records if record.agent.id not in dropped])
            forgotten = [id_ for id_ in changes.forgotten if id_ not in dropped]
            cursor.execute("DELETE FROM agent WHERE id = ANY(%s)", (forgotten,))
            cursor.execute("DELETE FROM seed WHERE id = ANY(%s)", (list(changes.spent),))
            if changes.secret:
                cursor.execute("UPDATE secret SET value = %s", (changes.secret,))
            cursor.execute("SELECT pg_notify(%s, %s)", (CHANNEL, self._name))
        if dropped:
            log.warning("write dropped", agents=sorted(dropped)[:10])
        return dropped

    def _not_held(self, cursor: psycopg.Cursor[dict[str, Any]], changes: Changes) -> frozenset[AgentId]:
        """Return the agents whose leases this member has lost; the others' stay until the transaction ends.

        Without terms no lease is needed: no member is alive, and this is a command that writes a whole state.
        """
        if changes.terms is None:
            living = [row["name"] for row in cursor.execute(_LIVING, (LEASE_SECONDS,)).fetchall()]
            if living:
                raise StoreError(
                    f"{described(self._database.url)}: in use by {', '.join(living)}; stop these controllers first"
                )
            return frozenset()
        ids, terms = list(changes.terms), list(changes.terms.values())
        held = {row["id"] for row in cursor.execute(_HELD, (ids, terms, self._name)).fetchall()}
        return frozenset(changes.terms.keys() - held)


def _with_seeds_of_others(cursor: psycopg.Cursor[dict[str, Any]], seeds: Sequence[Seed]) -> frozenset[AgentId]:
    """Write the seeds; return the agents whose seed has another holder in the database, where the first one counts."""
    losers = set()
    for seed in seeds:
        cursor.execute(_SEED, seed_values(seed))
        if not cursor.rowcount and seed.holder is not None:
            losers.add(seed.holder)
    return frozenset(losers)


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
            now = float(value(connection, CLOCK))
            version = connection.info.server_version // 10000
    except (psycopg.Error, OSError) as failed:
        raise StoreError(f"{described(url)}: {error_text(failed)}") from failed
    if not may and not known:
        raise StoreError(f"{described(url)}: this user may not create tables; GRANT CREATE on the schema to it")
    names = ", ".join(row["name"] for row in living)
    summary = f"{described(url)} answers, PostgreSQL {version}{f'; members: {names}' if names else ''}"
    return DatabaseFacts(summary, {row["name"]: row["rules"] for row in living}, now - time.time())


def _write_records(cursor: psycopg.Cursor[dict[str, Any]], records: Sequence[Record]) -> None:
    if not records:
        return
    ids = [record.agent.id for record in records]
    execute_rows(cursor, _AGENT, [agent_values(record) for record in records])
    pins = [pin for record in records if (pin := pin_values(record)) is not None]
    marks = [mark for record in records if (mark := quarantine_values(record)) is not None]
    # One statement for each table, however many agents have lost their pin or their quarantine.
    cursor.execute("DELETE FROM pin WHERE agent = ANY(%s) AND NOT agent = ANY(%s)", (ids, [pin[0] for pin in pins]))
    cursor.execute(
        "DELETE FROM quarantine WHERE agent = ANY(%s) AND NOT agent = ANY(%s)", (ids, [mark[0] for mark in marks])
    )
    execute_rows(cursor, _PIN, pins)
    execute_rows(cursor, _QUARANTINE, marks)


def _memory(connection: Connection) -> StoredState:
    version = int(value(connection, VERSION))
    secret = connection.execute(SELECT_SECRET) if version >= SECRET_SCHEMA else ()
    return stored_state(connection.execute(SELECT_AGENTS), connection.execute(SELECT_SEEDS), secret)
