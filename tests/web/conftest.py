"""Fixtures for the tests of the page in a browser: Debian's Chromium, and a page served by a thread."""

import asyncio
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.control.fake_daemon import FakeDaemon
from tests.ssh.ssh_server import free_port
from tests.web.served import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser


class PageServer:
    """The page of a daemon on one port, which can be stopped and started again."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._daemon = daemon
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve, and return once the port is open."""
        self._stop.clear()
        started = threading.Event()

        async def serve() -> None:
            async with served(self._daemon, port=self.port):
                started.set()
                await asyncio.to_thread(self._stop.wait)

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name="page server")
        self._thread.start()
        assert started.wait(10)

    def stop(self) -> None:
        """Stop serving."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(20)
        self._thread = None


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Run Chromium for the tests of a file."""
    from lab.browser import running_browser  # noqa: PLC0415 - imported only where a browser is needed

    with running_browser() as browser:
        yield browser


@pytest.fixture
def daemon() -> FakeDaemon:
    """Make a daemon for a test to change."""
    return FakeDaemon()


@pytest.fixture
def server(daemon: FakeDaemon) -> Iterator[PageServer]:
    """Serve the page of the daemon."""
    server = PageServer(daemon)
    server.start()
    yield server
    server.stop()
