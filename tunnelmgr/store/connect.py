"""Opens the store that `controller.state` names."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tunnelmgr.core.cluster import DatabaseFacts
from tunnelmgr.core.persistence import StoredState
from tunnelmgr.store.sqlite import SqliteStore, read_sqlite
from tunnelmgr.store.writer import WritableStore

if TYPE_CHECKING:
    from tunnelmgr.store.registry_proofs import RegistryProofs


class Store(WritableStore, Protocol):
    """Keeps records and seeds; every method blocks and raises StoreError."""

    def load(self) -> StoredState:
        """Return everything that was written."""
        ...

    def wall(self) -> float:
        """Return the time by which seeds and certificates expire, in seconds since the epoch; never blocks or fails.

        It is this machine's wall clock, and in a database that several controllers share, the database's.
        """
        ...

    def close(self) -> None:
        """Release the state."""
        ...


def open_store(url: str, name: str, password_file: Path | None = None) -> Store:
    """Open the store of `controller.state` for the controller of this name; raises StoreError.

    `sqlite:////var/lib/tunnelmgr/state.db`, or a connection URI of PostgreSQL (libpq-connect, section 34.1.1.2).
    """
    if (file := sqlite_file(url)) is not None:
        return SqliteStore(file)
    from tunnelmgr.store.postgres import PostgresStore  # noqa: PLC0415 - spares the usual case its import

    return PostgresStore(url, name, password_file)


def read_state(url: str, password_file: Path | None = None) -> StoredState:
    """Return what a store holds, also while a daemon uses it; raises StoreError, also if nothing was stored yet."""
    if (file := sqlite_file(url)) is not None:
        return read_sqlite(file)
    from tunnelmgr.store.postgres import read_postgres  # noqa: PLC0415 - as above

    return read_postgres(url, password_file)


def check_database(url: str, password_file: Path | None = None) -> DatabaseFacts:
    """Return what a PostgreSQL database says of itself and of who uses the state in it; raises StoreError."""
    from tunnelmgr.store.postgres import database_facts  # noqa: PLC0415 - as above

    return database_facts(url, password_file)


def open_registry_proofs(url: str, member: str, password_file: Path | None = None) -> "RegistryProofs":
    """Return where the members of a cluster verify that their registries are one; connects at the first call."""
    from tunnelmgr.store.registry_proofs import RegistryProofs  # noqa: PLC0415 - as above

    return RegistryProofs(url, member, password_file)


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for the URL of a database."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:") else None
