"""From `controller.state` to a store."""

from pathlib import Path
from typing import Protocol

from tunnelmgr.core.persistence import Changes, Memory
from tunnelmgr.errors import StoreError
from tunnelmgr.store.sqlite import SqliteStore


class Store(Protocol):
    """Keeps records; every method blocks and raises StoreError."""

    def load(self) -> Memory:
        """Return everything that was written."""
        ...

    def write(self, changes: Changes) -> None:
        """Write all of `changes` or nothing."""
        ...

    def close(self) -> None:
        """Let go of the state."""
        ...


def open_store(url: str) -> Store:
    """Open the store of a URL such as `sqlite:////var/lib/tunnelmgr/state.db`; raises StoreError."""
    scheme, _, path = url.partition("://")
    if scheme != "sqlite":
        raise StoreError(f"controller.state: {scheme} is no store that is known here")
    return SqliteStore(Path(path[1:] if path.startswith("//") else path.lstrip("/")))
