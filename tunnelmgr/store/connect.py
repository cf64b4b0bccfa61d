"""Opens the store that `controller.state` names."""

from pathlib import Path
from typing import Protocol

from tunnelmgr.core.persistence import StoredState
from tunnelmgr.errors import StoreError
from tunnelmgr.store.sqlite import SqliteStore
from tunnelmgr.store.writer import WritableStore


class Store(WritableStore, Protocol):
    """Keeps records and seeds; every method blocks and raises StoreError."""

    def load(self) -> StoredState:
        """Return everything that was written."""
        ...

    def close(self) -> None:
        """Release the state."""
        ...


def open_store(url: str) -> Store:
    """Open the store of a URL such as `sqlite:////var/lib/tunnelmgr/state.db`; raises StoreError."""
    scheme, _, path = url.partition("://")
    if scheme != "sqlite":
        raise StoreError(
            f"controller.state: unknown store {scheme!r}; write a URL such as sqlite:////var/lib/tunnelmgr/state.db"
        )
    return SqliteStore(Path(path[1:] if path.startswith("//") else path.lstrip("/")))
