"""Fixtures of the stores' tests: a real PostgreSQL server, and an empty database in it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def empty_database(server: Postgres, name: str) -> Iterator[str]:
    """Make an empty database, and drop it at the end."""
    _execute(server, f"CREATE DATABASE {name}")
    yield server.url.replace("/postgres?", f"/{name}?")
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """Make an empty database for one test."""
    with empty_database(server, "state") as url:
        yield url


def _execute(server: Postgres, statement: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(statement.encode())
