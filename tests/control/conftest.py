"""Fixtures of the control tests: a fake daemon, and its server on a real unix socket."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.control.fake_daemon import FakeDaemon
from tunnelmgr.control.client import ControlClient
from tunnelmgr.control.routes import ApiRoutes
from tunnelmgr.control.server import ControlServer

Answer = TypeVar("Answer")


@pytest.fixture
def daemon() -> FakeDaemon:
    """Make a daemon."""
    return FakeDaemon()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Name the socket."""
    return tmp_path / "run" / "tunnelmgr.sock"


@pytest.fixture
async def server(daemon: FakeDaemon, place: Path) -> AsyncIterator[ControlServer]:
    """Serve the daemon."""
    server = ControlServer(daemon, place, ApiRoutes(daemon).routes())
    await server.start()
    yield server
    await server.close()


@pytest.fixture
def client(server: ControlServer, place: Path) -> ControlClient:  # noqa: ARG001 - it has to run
    """Return a client for it."""
    return ControlClient(place)


@pytest.fixture
def ask() -> Callable[..., object]:
    """Run a blocking call in a thread while the server's loop runs."""

    async def call(function: Callable[..., Answer], *args: object, **kwargs: object) -> Answer:
        return await asyncio.wait_for(asyncio.to_thread(function, *args, **kwargs), 10)

    return call
