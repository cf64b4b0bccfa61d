"""The controller as a user runs it: a process of its own, a configuration file, and the real command line."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from lab.agents import SSH_PORT
from lab.faults.packets import PacketFaults
from lab.namespaces import Machine
from lab.processes import LabError, Process, Stream, until
from tunnelmgr.control.client import ControlClient
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import TunnelmgrError
from tunnelmgr.hooks import authorized_keys_line
from tunnelmgr.ssh.key_files import make_key, public_line

LISTEN = (Endpoint("127.0.0.1", 5000), Endpoint("::1", 5000))

_HEAD = """\
[controller]
name = "registry-1"
state = "sqlite:///{folder}/state.db"
socket = "{folder}/tunnelmgr.sock"
drain = "10s"

[ssh]
key = "{folder}/id_ed25519"
connect_timeout = "3s"
probe_interval = "{probe_interval}"
"""

HEAD_WITH_PAGE = _HEAD.replace("[ssh]", 'metrics = "127.0.0.1:9750"\n\n[ssh]', 1)
"""The usual head, with the status page."""

DEFAULTS_HEAD = """\
[controller]
name = "registry-1"
state = "sqlite:///{folder}/state.db"
socket = "{folder}/tunnelmgr.sock"

[ssh]
key = "{folder}/id_ed25519"
probe_interval = "{probe_interval}"
"""
"""The usual head, but with the product's default deadlines."""


class LabController:
    """`tunnelmgr run` on a machine of the lab, with its files in one folder."""

    def __init__(self, machine: Machine, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.machine = machine
        self.folder = folder
        self.file = folder / "tunnelmgr.toml"
        self.environment = dict(environment or {})  # of the daemon and of the commands
        self._process: Process | None = None
        self._terminated = False
        folder.mkdir(parents=True, exist_ok=True)
        make_key(folder / "id_ed25519", "tunnelmgr@demo")

    @property
    def authorized_keys(self) -> str:
        """The line of authorized_keys that agents need."""
        return authorized_keys_line(LISTEN, public_line(self.folder / "id_ed25519"))

    @property
    def client(self) -> ControlClient:
        """A client of the daemon's API."""
        return ControlClient(self.folder / "tunnelmgr.sock")

    @property
    def log_file(self) -> Path:
        """The daemon's log, one JSON object per line."""
        return self.folder / "tunnelmgr.log"

    @property
    def faults(self) -> PacketFaults:
        """The packet faults of its machine."""
        return PacketFaults(self.machine, SSH_PORT)

    @property
    def is_running(self) -> bool:
        """Whether the daemon was started and its process has not ended; it may be frozen."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The daemon's own process id."""
        if self._process is None:
            raise LabError("the controller is not running")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else self._process.pid

    def configure(self, sections: str, *, probe_interval: str = "2s", head: str = _HEAD) -> None:
        """Write the configuration: the usual head, followed by `sections`."""
        self.file.write_text(head.format(folder=self.folder, probe_interval=probe_interval) + sections)

    def start(self) -> None:
        """Start the daemon and return when it answers."""
        argv = [sys.executable, "-m", "tunnelmgr", "run", "-c", str(self.file), "--log-format", "json"]
        self._terminated = False
        self._process = process = self.machine.popen(argv, log=self.log_file, env=self.environment)
        until(lambda: process.poll() is not None or self.answers(), "the controller answers", timeout=20)
        if process.poll() is not None:
            raise LabError(f"the controller does not start: {self.log()[-2000:]}")

    def terminate(self) -> None:
        """Ask the daemon to stop, once; a second signal would end it at once."""
        if not self._terminated:
            os.kill(self.pid, signal.SIGTERM)
            self._terminated = True

    def stop(self, patience: float = 20.0) -> int:
        """Ask the daemon to stop unless `terminate` has, wait, and return its exit status."""
        if self._process is None:
            return 0
        self.terminate()
        process, self._process = self._process, None
        until(lambda: process.poll() is not None, "the controller ends", timeout=patience)
        return int(process.returncode)

    def kill(self) -> None:
        """Kill the daemon with SIGKILL, unless it has ended with its machine."""
        if self.is_running:
            os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=5)
        self._process = None

    def freeze(self) -> None:
        """Stop the daemon in place with SIGSTOP: its connections stay open, and nothing answers on them."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen daemon continue."""
        os.kill(self.pid, signal.SIGCONT)

    def answers(self) -> bool:
        """Report whether the daemon answers on its socket."""
        try:
            self.client.status()
        except TunnelmgrError:
            return False
        return True

    def log(self) -> str:
        """Return the daemon's log."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def command(self, *arguments: str, timeout: float = 30.0) -> CompletedProcess[str]:
        """Run a command of the command line against this daemon."""
        return self.machine.run(self._argv(*arguments), timeout=timeout, env=self.environment)

    def show(self, *arguments: str, output: Stream, timeout: float = 30.0) -> int:
        """Run a command of the command line with both its outputs to a stream; return its exit status."""
        process = self.machine.popen(self._argv(*arguments), env=self.environment, stdout=output, stderr=output)
        return process.wait(timeout)

    def agent(self, wanted: str) -> dict[str, Any]:
        """Return one agent with its history."""
        return self.client.agent(wanted)

    def wait(
        self, wanted: str, condition: Callable[[dict[str, Any]], bool], what: str, timeout: float = 20.0
    ) -> dict[str, Any]:
        """Wait until the condition holds for an agent, and return it; raises LabError with its state and history."""
        last: dict[str, Any] = {}

        def holds() -> bool:
            try:
                last.update(self.agent(wanted))
            except TunnelmgrError as failed:
                last["failed"] = str(failed)
                return False
            return condition(last)

        try:
            until(holds, what, timeout=timeout)
        except LabError as late:
            raise LabError(f"{late}; last seen: {json.dumps(last, indent=1)}") from late
        return last

    def wait_phase(self, wanted: str, phase: str, timeout: float = 20.0) -> dict[str, Any]:
        """Wait until an agent is in a phase."""
        return self.wait(wanted, lambda agent: agent["phase"] == phase, f"{wanted} is {phase}", timeout)

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tunnelmgr", "-c", str(self.file), *arguments]
