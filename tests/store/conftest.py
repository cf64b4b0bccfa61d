"""Fixtures of the stores' tests: a real PostgreSQL server, and an empty database in it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lab.postgres import Postgres


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """Run a server in a folder that its own user can reach, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        with Postgres(Path(folder) / "server") as running:
            yield running


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """Make an empty database, and drop it at the end."""
    _execute(server, "CREATE DATABASE state")
    yield server.url.replace("/postgres?", "/state?")
    _execute(server, "DROP DATABASE state WITH (FORCE)")


def _execute(server: Postgres, statement: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(statement.encode())
