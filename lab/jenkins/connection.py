"""Jenkins' ssh connection to an agent: commands, files, and the process that carries the channel."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.jenkins.channel import Channel
from lab.jenkins.remoting import HandshakeError
from lab.processes import LabError

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from lab.namespaces import Machine
    from lab.processes import Process

USER = "jenkins"
_OPTIONS = (
    *("-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    # In place of the ping thread of remoting, which ends a channel whose agent does not answer.
    *("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=3"),
)


class LaunchFailedError(LabError):
    """The agent was not launched; the message is what Jenkins shows."""


@dataclass(frozen=True)
class Connection:
    """How Jenkins' machine reaches an agent, and as which user."""

    jenkins: Machine
    key: Path
    address: str

    def execute(self, command: str, *, pty: bool = False, timeout: float = 120.0) -> CompletedProcess[str]:
        """Run a command with stdin closed; with a terminal, its stderr is in its stdout."""
        return self.jenkins.run([*self._ssh(*(("-tt",) if pty else ())), command], timeout=timeout)

    def reachable(self) -> bool:
        """Whether the agent's sshd accepts the login."""
        return self.execute("exit 0").returncode == 0

    def copy(self, content: bytes, path: str, mode: int) -> None:
        """Copy a file by scp's own protocol, as the plugins do; raises LaunchFailedError."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file")
            file.write_bytes(content)
            file.chmod(mode)
            argv = ["scp", "-O", "-p", "-q", "-i", str(self.key), *_OPTIONS, str(file), f"{USER}@{self.address}:{path}"]
            done = self.jenkins.run(argv)
        if done.returncode:
            raise LaunchFailedError(f"scp to {path} failed: {done.stderr}")

    def put(self, content: bytes, path: str) -> None:
        """Copy a file by sftp, after removing an older one; raises LaunchFailedError."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "file")
            file.write_bytes(content)
            argv = ["sftp", "-b", "-", "-q", "-i", str(self.key), *_OPTIONS, f"{USER}@{self.address}"]
            done = self.jenkins.run(argv, feed=f"-rm {path}\nput {file} {path}\n")
        if done.returncode:
            raise LaunchFailedError(f"sftp to {path} failed: {done.stderr}")

    def open_channel(self, command: str, log: Path, *, timeout: float) -> Channel:
        """Run a command whose stdin and stdout become the channel; its stderr goes to the agent's log.

        Raises LaunchFailedError with the log if the handshake does not succeed in time.
        """
        with log.open("ab") as stderr:
            process = self.jenkins.popen(
                [*self._ssh(), command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )
        try:
            return Channel.open(process, timeout=timeout)
        except (HandshakeError, OSError, TimeoutError) as failed:
            raise LaunchFailedError(f"{_outcome(process, failed)}: {log.read_text()}") from failed

    def _ssh(self, *options: str) -> list[str]:
        return ["ssh", *options, "-i", str(self.key), *_OPTIONS, f"{USER}@{self.address}"]


def _outcome(process: Process, failed: Exception) -> str:
    """Return how the agent's command has ended, as the plugin reports it, and end the process."""
    if isinstance(failed, TimeoutError):
        process.end()
        return "launch timed out"
    status = process.wait(10)
    process.end()
    return f"agent process exited with status {status} ({failed})"
