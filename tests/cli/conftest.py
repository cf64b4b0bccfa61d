"""Fixtures for the tests of the command line: a runner, a configuration, and a daemon that answers on a real socket."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import Result
from typer.testing import CliRunner

from tests.control.fake_daemon import FakeDaemon
from tunnelmgr.cli import app
from tunnelmgr.control.routes import ApiRoutes
from tunnelmgr.control.server import ControlServer
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.ssh.key_files import make_key
from tunnelmgr.web.health import HealthRoutes

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tester's settings out of the tests."""
    for name in ("TUNNELMGR_CONFIG", "TUNNELMGR_SOCKET", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run() -> Run:
    """Run a command as a shell would, with separate stdout and stderr."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="tunnelmgr")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def daemon() -> FakeDaemon:
    """Make a daemon with an agent in each phase."""
    return FakeDaemon()


@pytest.fixture
def socket(daemon: FakeDaemon, tmp_path: Path) -> Iterator[Path]:
    """Serve the daemon's API in a thread of its own, and return its socket."""
    # Its log would mix with the output of the command.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    place = tmp_path / "control.sock"
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        server = ControlServer(daemon, place, (*ApiRoutes(daemon).routes(), *HealthRoutes(daemon, Metrics()).routes()))
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="daemon")
    thread.start()
    assert started.wait(10)
    yield place
    stop.set()
    thread.join(10)
    structlog.reset_defaults()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a valid configuration with one agent."""
    make_key(tmp_path / "id_ed25519", "test")
    file = tmp_path / "tunnelmgr.toml"
    file.write_text(f"""\
[controller]
name = "registry-1"
state = "sqlite:///{tmp_path}/state.db"
socket = "{tmp_path}/control.sock"
[ssh]
key = "{tmp_path}/id_ed25519"
[[forward]]
name = "registry"
listen = ["127.0.0.1:5000"]
target = "127.0.0.1:1"
[[source]]
name = "office"
type = "static"
trust = ["tofu"]
  [[source.agent]]
  name = "builder-1"
  address = "192.0.2.7"
""")
    return file
