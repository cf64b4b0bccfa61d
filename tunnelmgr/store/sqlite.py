"""The state in one SQLite file.

The journal is a WAL, so that the last whole transaction survives kill -9 at any time. A lock file beside it ensures
one writer. Migrations are numbered; each is a transaction of its own, with the version that it leads to.
https://www.sqlite.org/wal.html
"""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.parse import quote

from tunnelmgr.core.agent import AgentId
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

if TYPE_CHECKING:
    from collections.abc import Iterator

Answer = TypeVar("Answer")

APPLICATION = 0x746E6C6D
"""`tnlm`, in SQLite's application_id: distinguishes our file from those of other programs."""

CHECKPOINT_PAGES = 64
"""Pages of 4 KiB in the WAL after which SQLite moves them into the database; its default is 1000."""
WAL_LIMIT = 512 * 1024
"""Bytes to which SQLite truncates the WAL at the first write after a checkpoint; without a limit it stays as long as
the longest transaction ever was (https://www.sqlite.org/pragma.html#pragma_journal_size_limit)."""
MIGRATIONS = files("tunnelmgr.store.migrations") / "sqlite"
CLOSE_PATIENCE = 1.0
"""Seconds that `close` waits for a call in another thread; SQLite must not be closed under it."""

_AGENT = """
INSERT INTO agent (
    id, incarnation, source, "group", name, addresses, port, labels, first_seen, changed, present, history
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    incarnation = excluded.incarnation, source = excluded.source, "group" = excluded."group", name = excluded.name,
    addresses = excluded.addresses, port = excluded.port, labels = excluded.labels, changed = excluded.changed,
    present = excluded.present, history = excluded.history
"""
_PIN = "INSERT OR REPLACE INTO pin (agent, incarnation, method, keys, detail, possessed) VALUES (?, ?, ?, ?, ?, ?)"
_SEED = 'INSERT OR REPLACE INTO seed (id, "key", expires, holder, incarnation) VALUES (?, ?, ?, ?, ?)'
_SECRET = "INSERT OR IGNORE INTO secret VALUES (1, ?)"  # noqa: S105 (a statement)
_QUARANTINE = """
INSERT OR REPLACE INTO quarantine (agent, since, code, message, disputed, examined) VALUES (?, ?, ?, ?, ?, ?)
"""


class SqliteStore:
    """Reads everything at the start and writes changes. It blocks, so it is called in a thread."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._use = threading.Lock()
        self._lock = _locked(file)
        try:
            self._db = self._guarded(lambda: _opened(file))
        except BaseException:
            self._lock.close()
            raise

    def load(self) -> StoredState:
        """Return everything that was written; raises StoreError."""
        return self._guarded(lambda: _memory(self._db))

    def write(self, changes: Changes) -> frozenset[AgentId]:
        """Write all of `changes` or nothing; raises StoreError, after which the same call may be tried again.

        Returns the agents about which nothing was written, as other stores do: here there are none.
        """
        self._guarded(lambda: self._write(changes))
        return frozenset()

    def wall(self) -> float:
        """Return the time by this machine's wall clock."""
        return time.time()

    def close(self) -> None:
        """Close the file; if a call that hangs still uses it, the end of the process closes it."""
        if self._use.acquire(timeout=CLOSE_PATIENCE):
            self._db.close()
            self._lock.close()
            self._use.release()

    def _write(self, changes: Changes) -> None:
        with _transaction(self._db):
            for record in changes.records:
                self._write_record(record)
            self._db.executemany("DELETE FROM agent WHERE id = ?", [(id_,) for id_ in changes.forgotten])
            self._db.executemany(_SEED, [seed_values(seed) for seed in changes.seeds])
            self._db.executemany("DELETE FROM seed WHERE id = ?", [(id_,) for id_ in changes.spent])
            if changes.secret:
                self._db.execute("UPDATE secret SET value = ?", (changes.secret,))

    def _write_record(self, record: Record) -> None:
        self._db.execute(_AGENT, agent_values(record))
        if (pin := pin_values(record)) is None:
            self._db.execute("DELETE FROM pin WHERE agent = ?", (record.agent.id,))
        else:
            self._db.execute(_PIN, pin)
        if (mark := quarantine_values(record)) is None:
            self._db.execute("DELETE FROM quarantine WHERE agent = ?", (record.agent.id,))
        else:
            self._db.execute(_QUARANTINE, mark)

    def _guarded(self, act: Callable[[], Answer]) -> Answer:
        try:
            with self._use:
                return act()
        except (sqlite3.Error, OSError, UnicodeError) as failed:
            raise StoreError(f"{self.file}: {failed}") from failed


def read_sqlite(file: Path) -> StoredState:
    """Return what a state file holds, also while a daemon writes it; raises StoreError, also if there is no file."""
    if not file.exists():
        raise StoreError(f"{file}: there is no state file; check controller.state")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=5)) as db:
            db.row_factory = sqlite3.Row
            if _pragma(db, "application_id") != APPLICATION:
                raise SchemaError(f"{file}: is the database of another program")
            with _snapshot(db):
                return _memory(db)
    except sqlite3.Error as failed:
        raise StoreError(f"{file}: {failed}") from failed


def _memory(db: sqlite3.Connection) -> StoredState:
    secret = db.execute(SELECT_SECRET) if _pragma(db, "user_version") >= SECRET_SCHEMA else ()
    return stored_state(db.execute(SELECT_AGENTS), db.execute(SELECT_SEEDS), secret)


@contextmanager
def _snapshot(db: sqlite3.Connection) -> "Iterator[None]":
    """Read one state of the file, unaffected by concurrent writes (https://www.sqlite.org/isolation.html)."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def _locked(file: Path) -> IO[bytes]:
    """Take the lock, which the kernel releases however the process ends."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = file.with_name(file.name + ".lock").open("ab")
    except OSError as failed:
        raise StoreError(
            f"{file}: {failed.strerror}; make the directory of controller.state writable for the daemon's user"
        ) from failed
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as taken:
        lock.close()
        raise StoreError(
            f"{file}: another tunnelmgr uses this state; stop it, or set controller.state to another file"
        ) from taken
    return lock


def _opened(file: Path) -> sqlite3.Connection:
    # Only we may read the file: it says which machine may pull what, and holds a secret.
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        _prepare(db, file)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, file: Path) -> None:
    """Check that the database is ours, migrate it to the present schema, and set how SQLite writes it."""
    db.row_factory = sqlite3.Row
    ours, version = _pragma(db, "application_id"), _pragma(db, "user_version")
    known = sorted(entry.name for entry in MIGRATIONS.iterdir() if entry.name.endswith(".sql"))
    if ours not in {0, APPLICATION} or (ours == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone()):
        raise SchemaError(
            f"{file}: belongs to another program (SQLite application_id); set controller.state to another file"
        )
    if version > len(known):
        raise SchemaError(
            f"{file}: was written by a newer tunnelmgr (schema {version}, known {len(known)}); install that "
            "version again, or move the file away and import a backup (`tunnelmgr state import`)"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    for number, name in enumerate(known[version:], start=version + 1):
        script = (MIGRATIONS / name).read_text(encoding="utf-8")
        with _transaction(db):
            for statement in _statements(script):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {number}")
    db.execute(_SECRET, (new_secret(),))


def _statements(script: str) -> "Iterator[str]":
    """Split a script as SQLite does, which knows comments and strings; executescript would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _transaction(db: sqlite3.Connection) -> "Iterator[None]":
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
