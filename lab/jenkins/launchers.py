"""The launch steps of three Jenkins plugins, each in the order and with the timeouts of its source.

- jenkinsci/ec2-plugin: `EC2UnixLauncher` and `EC2SSHLauncher`
- jenkinsci/ssh-agents-plugin: `SSHLauncher`
- jenkinsci/hetzner-cloud-plugin: `HetznerServerComputerLauncher`
"""

from __future__ import annotations

import io
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.jenkins import remoting
from lab.jenkins.connection import Connection, LaunchFailedError

if TYPE_CHECKING:
    from lab.jenkins.channel import Channel

HOUR = 3600.0
"""Seconds; in place of no limit."""
JAR = "remoting.jar"


def remoting_jar() -> bytes:
    """Return the program for the agent: an archive, as remoting.jar is, which the agent's `java` runs."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as jar:
        jar.writestr("__main__.py", Path(remoting.__file__).read_text(encoding="utf-8"))
    return archive.getvalue()


@dataclass(frozen=True)
class Ec2Launcher:
    """A template of the EC2 plugin; the fields have the names of its configuration.

    `pty` is whether the init script gets a terminal: it does in versions with the Trilead library, and not in those
    with MINA. `bootstrap_auth_sleep` is `jenkins.ec2.bootstrapAuthSleepMs`.
    """

    init_script: str
    agent_command_prefix: str = ""
    remote_fs: str = ""
    pty: bool = True
    bootstrap_auth_tries: int = 30
    bootstrap_auth_sleep: float = 30.0

    def launch(self, connection: Connection, log: Path) -> Channel:
        """Launch the agent; raises LaunchFailedError, after which newer versions terminate the instance."""
        self._bootstrap(connection, log)
        folder = self.remote_fs
        connection.execute(f"mkdir -p {folder}")
        if self.init_script.strip() and connection.execute("test -e ~/.hudson-run-init").returncode:
            self._run_init_script(connection, folder, log)
        connection.execute("java -fullversion")
        connection.execute("which scp")
        connection.copy(remoting_jar(), f"{folder}/{JAR}", 0o600)
        command = f"{self.agent_command_prefix} java  -jar {folder}/{JAR} -workDir {folder}"
        return connection.open_channel(command, log, timeout=HOUR)

    def _bootstrap(self, connection: Connection, log: Path) -> None:
        for _ in range(self.bootstrap_auth_tries):
            if connection.reachable():
                return
            with log.open("a") as text:
                text.write("Authentication failed. Trying again...\n")
            time.sleep(self.bootstrap_auth_sleep)
        raise LaunchFailedError("bootstrapresult failed")

    def _run_init_script(self, connection: Connection, folder: str, log: Path) -> None:
        """Copy the script and run it, without a time limit."""
        connection.copy(self.init_script.encode(), f"{folder}/init.sh", 0o700)
        done = connection.execute(f"{folder}/init.sh", pty=self.pty, timeout=HOUR)
        with log.open("a") as text:
            text.write(done.stdout + done.stderr)
        if done.returncode:
            raise LaunchFailedError(f"init script failed: exit code={done.returncode}: {log.read_text()}")
        connection.execute("touch ~/.hudson-run-init", pty=self.pty)


@dataclass(frozen=True)
class SshLauncher:
    """A node of the SSH launcher; the fields have the names of its configuration, in seconds."""

    prefix_start_slave_cmd: str = ""
    remote_fs: str = ""
    launch_timeout_seconds: float = 60.0
    max_num_retries: int = 10
    retry_wait_time: float = 15.0

    def launch(self, connection: Connection, log: Path) -> Channel:
        """Launch the agent within `launch_timeout_seconds`; raises LaunchFailedError."""
        deadline = time.monotonic() + self.launch_timeout_seconds
        for _ in range(self.max_num_retries):
            if connection.reachable():
                break
            time.sleep(self.retry_wait_time)
        folder = self.remote_fs
        if junk := connection.execute("exit 0").stdout:
            raise LaunchFailedError(f"the SSH connection to this host produces output: {junk!r}")
        connection.execute("set")
        if connection.execute("java  -version").returncode:
            raise LaunchFailedError("Java not found")
        connection.put(remoting_jar(), f"{folder}/{JAR}")
        start = f'cd "{folder}" && java  -jar {JAR} -workDir {folder} -jarCache {folder}/remoting/jarCache'
        # Nothing comes between prefix and command, and the plugin strips spaces from the prefix.
        command = self.prefix_start_slave_cmd.strip() + start
        return connection.open_channel(command, log, timeout=max(deadline - time.monotonic(), 0.1))


@dataclass(frozen=True)
class HetznerLauncher:
    """A server template of the Hetzner plugin: it runs no script of ours before the agent."""

    remote_fs: str = ""
    tries: int = 10
    pause: float = 10.0

    def launch(self, connection: Connection, log: Path) -> Channel:
        """Launch the agent; raises LaunchFailedError."""
        for _ in range(self.tries):
            if connection.reachable():
                break
            time.sleep(self.pause)
        else:
            raise LaunchFailedError("Failed to launch agent")
        folder = self.remote_fs
        start = f"#!/bin/sh\njava  -jar {folder}/{JAR} -workDir {folder}\n"
        connection.copy(remoting_jar(), f"{folder}/{JAR}", 0o444)
        connection.copy(start.encode(), f"{folder}/.agent.start.sh", 0o555)
        return connection.open_channel(f"/bin/sh {folder}/.agent.start.sh", log, timeout=HOUR)
