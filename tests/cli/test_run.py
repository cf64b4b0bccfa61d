"""`run`: the protection of the process's memory."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tunnelmgr.store.sqlite import APPLICATION

_PROBE = """
import ctypes, resource
from tunnelmgr.cli.run import keep_out_of_core_files
keep_out_of_core_files()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))
"""
"""3 is PR_GET_DUMPABLE."""


def test_a_process_that_holds_keys_leaves_no_core_file() -> None:
    """A protected process writes no core file, and no other process of the same user can attach to it."""
    shown = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True, timeout=20)

    assert shown.stdout == "0 (0, 0)\n"


@pytest.mark.usefixtures("_cores_allowed")
def test_the_daemon_leaves_no_core_file(config: Path) -> None:
    """A daemon that is aborted leaves no core file, even if the limit allows any size."""
    argv = [sys.executable, "-m", "tunnelmgr", "run", "-c", str(config), "--log-format", "json"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=config.parent) as daemon:
        assert daemon.stderr is not None
        try:
            assert any('"event": "daemon started"' in line for line in daemon.stderr)
            limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        finally:
            os.kill(daemon.pid, signal.SIGABRT)
        _, status = os.waitpid(daemon.pid, 0)
        daemon.returncode = os.waitstatus_to_exitcode(status)

    assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4:6] == ["0", "0"]
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)


@pytest.fixture
def _cores_allowed() -> Iterator[None]:
    """Allow core files of any size to our child processes, as far as we may."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def test_a_state_of_a_newer_version_ends_the_daemon_with_a_status_of_its_own(config: Path) -> None:
    """The status keeps systemd from another start (RestartPreventExitStatus), and the error says what to do."""
    argv = [sys.executable, "-m", "tunnelmgr", "run", "-c", str(config)]
    state = config.parent / "state.db"
    with closing(sqlite3.connect(state)) as database:
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.execute("PRAGMA user_version = 99")

    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)

    assert ended.returncode == 4
    assert ended.stderr.startswith(f"error: {state}: was written by a newer tunnelmgr")
    assert "install that version again" in ended.stderr
