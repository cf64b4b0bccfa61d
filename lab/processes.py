"""Child processes that always end: every wait has a deadline, and only our own children are killed, by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from subprocess import DEVNULL, PIPE
from typing import IO, TYPE_CHECKING, TypeVar

from tunnelmgr.errors import TunnelmgrError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Found = TypeVar("Found")
Stream = int | IO[bytes]

# All HTTP in the lab is plain, and a CA bundle set for the host makes the registry panic.
_REMOVED_VARIABLES = frozenset({"AWS_CA_BUNDLE", "AWS_PROFILE", "SSH_AUTH_SOCK"})


class LabError(TunnelmgrError):
    """A part of the lab did not come up, or a program in it failed."""

    code = "lab"


def until(condition: Callable[[], Found], expectation: str, *, timeout: float = 10.0, pause: float = 0.02) -> Found:
    """Wait until the condition is truthy and return its value; raises LabError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if found := condition():
            return found
        if time.monotonic() > deadline:
            raise LabError(f"timed out after {timeout:g} s: expected that {expectation}")
        time.sleep(pause)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return our own environment without the variables that would mislead a program of the lab, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if name not in _REMOVED_VARIABLES}
    return kept | dict(extra or {})


def kill(pid: int, sig: int = signal.SIGKILL) -> None:
    """Signal one process; do nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


class Process(subprocess.Popen[bytes]):
    """A child that leads its own process group; a signal sent to it reaches the whole group.

    `nsenter --pid` has to fork, so the program is a grandchild, which a signal to the child alone would not reach.
    """

    def send_signal(self, sig: int) -> None:
        """Send the signal to every process of the group, if the child still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, sig)

    def end(self, *, patience: float = 0.0) -> None:
        """Kill the group, `patience` seconds after SIGTERM if given, and reap the child."""
        if patience:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(patience)
        self.kill()
        self.wait(5)
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream:
                stream.close()


class Processes:
    """The long-running children of one lab, which end with it."""

    def __init__(self) -> None:
        self._started: list[Process] = []

    def start(  # noqa: PLR0913 - these are the streams of a process
        self,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Stream = DEVNULL,
        stdout: Stream = DEVNULL,
        stderr: Stream = DEVNULL,
    ) -> Process:
        """Start a program; with `log`, both its outputs are appended to that file."""
        with contextlib.ExitStack() as stack:
            if log is not None:
                stdout = stderr = stack.enter_context(log.open("ab"))
            process = Process(
                list(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=environment(env), start_new_session=True
            )
        self._started.append(process)
        return process

    def end_all(self) -> None:
        """End every child, the latest first."""
        while self._started:
            self._started.pop().end()


def run(
    argv: Sequence[str],
    *,
    feed: str = "",
    timeout: float = 30.0,
    check: bool = False,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with `feed` on its stdin; its outputs are captured as text.

    Raises subprocess.TimeoutExpired after `timeout` seconds (the program is killed first) and, with `check`, LabError
    with the program's output if its exit status is not 0.
    """
    process = Process(list(argv), stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(env), start_new_session=True)
    try:
        out, err = process.communicate(feed.encode(), timeout)
    finally:
        process.end()
    done = subprocess.CompletedProcess(
        list(argv), process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
    )
    if check and done.returncode:
        raise LabError(
            f"{' '.join(argv)}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-800:]}"
        )
    return done
