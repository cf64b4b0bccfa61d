"""`status --wait`: what scripts and container engines get from it."""

import json
import socket as sockets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from tests.control.fake_daemon import FakeDaemon
from tunnelmgr.cli.wait import Condition, wait_for
from tunnelmgr.control.client import ControlClient
from tunnelmgr.core.health import RegistryHealth

Run = Callable[..., Result]


@contextmanager
def listener(place: Path) -> Iterator[None]:
    """Listen on a unix socket without ever answering."""
    with sockets.socket(sockets.AF_UNIX) as silent:
        silent.bind(str(place))
        silent.listen()
        yield


AWAY = RegistryHealth(reachable=False, loopback_only=None, error="Connection refused")


@pytest.mark.parametrize("condition", [*Condition, "ready", "Alive"])
def test_the_wait_ends_with_0_once_the_condition_holds(run: Run, socket: Path, condition: str) -> None:
    """A condition, in any case, that holds ends the wait at once with exit status 0, and every check is printed."""
    result = run("status", "--socket", socket, "--wait", condition)

    assert result.exit_code == 0
    assert "✔" in result.stdout


def test_agents_without_a_tunnel_do_not_make_it_wait(run: Run, socket: Path) -> None:
    """READY is about the controller: `status` alone fails with this fleet, which has agents that are down."""
    assert run("status", "--socket", socket).exit_code == 1
    assert run("status", "--socket", socket, "--wait", "READY").exit_code == 0


def test_what_is_missing_at_the_end_is_printed(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """A daemon that is not ready in time ends the wait with exit status 1, and the check that fails has its error."""
    daemon.registry = AWAY
    result = run("status", "--socket", socket, "--wait", "READY", "--timeout", "100ms")

    assert result.exit_code == 1
    assert "✖" in result.stdout
    assert "Connection refused" in result.stdout


def test_a_daemon_that_only_lives_is_alive(run: Run, socket: Path, daemon: FakeDaemon) -> None:
    """ALIVE holds although the registry is away, so that a container engine does not restart the daemon for that."""
    daemon.registry = AWAY

    assert run("status", "--socket", socket, "--wait", "ALIVE", "--timeout", "100ms").exit_code == 0


def test_json_has_the_condition_and_the_checks(run: Run, socket: Path) -> None:
    """`--json` prints whether the condition holds, and every check."""
    answer = json.loads(run("status", "--socket", socket, "--wait", "READY", "--json").stdout)

    assert (answer["condition"], answer["holds"]) == ("READY", True)
    assert [check["check"] for check in answer["checks"]] == ["running", "registry", "state", "source office"]


def test_without_a_daemon_the_exit_status_is_3(run: Run, tmp_path: Path) -> None:
    """If nothing answers until the end, the exit status is that of every command without a daemon."""
    result = run("status", "--socket", tmp_path / "none", "--wait", "ALIVE", "--timeout", "50ms")

    assert result.exit_code == 3
    assert "no daemon answers" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--wait", "UP"), ("--timeout", "60")])
def test_an_invalid_wait_is_explained(run: Run, socket: Path, option: str, value: str) -> None:
    """An unknown condition, and a time without a unit, end with exit status 2 and what to write."""
    result = run("status", "--socket", socket, "--wait", "READY", option, value)

    assert result.exit_code == 2
    assert option in result.stderr


def test_a_daemon_that_becomes_ready_ends_the_wait(socket: Path, daemon: FakeDaemon) -> None:
    """The wait asks again until the daemon is ready."""
    daemon.registry = AWAY

    class Repairing(ControlClient):
        """Repairs the registry after the first question."""

        def waiting(self, patience: float) -> ControlClient:
            del patience
            return self

        def readiness(self) -> list[dict[str, object]]:
            checks = super().readiness()
            daemon.registry = replace(AWAY, reachable=True)
            return checks

    assert not all(check["ok"] for check in ControlClient(socket).readiness())
    assert all(check["ok"] for check in wait_for(Condition.READY, Repairing(socket), 10))


def test_a_daemon_that_hangs_is_given_up_in_time(run: Run, tmp_path: Path) -> None:
    """A daemon that accepts connections and does not answer is not waited for longer than the timeout."""
    with listener(tmp_path / "sock"):
        result = run("status", "--socket", tmp_path / "sock", "--wait", "ALIVE", "--timeout", "300ms")

    assert result.exit_code == 3
    assert "timed out" in result.stderr


def test_the_command_line_imports_neither_the_page_nor_its_templates() -> None:
    """Commands start fast because they import neither aiohttp nor the template engine."""
    program = "import sys, tunnelmgr.cli.status; print({'aiohttp', 'jinja2', 'tunnelmgr.web'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "set()"
