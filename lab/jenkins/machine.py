"""An agent as docs/agents.md prepares it, with a user for Jenkins, whose home survives a stop of the machine."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lab.jenkins.connection import USER
from tunnelmgr.hooks import render, sshd_settings

if TYPE_CHECKING:
    from lab.agents import LabAgent

UID = 4343
SYSTEM_PYTHON = "/usr/bin/python3"
"""Debian's, which every user of an agent may run; the one of the tests may be in a home of root."""
_SSHD = """\
HostKey /etc/ssh/lab_host_key
UsePAM no
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u
Subsystem sftp internal-sftp
LogLevel VERBOSE
PidFile none
"""
# $1 the folder that is hidden, $2 where the layer above it is.
_OVERLAY = """
mkdir -p "$2/upper" "$2/work"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$1"
"""
_JAVA = """\
#!/bin/sh
# Runs the archive that stands in for remoting.jar.
case $* in
    *-jar*) while [ "$1" != -jar ]; do shift; done; exec {python} "$2" ;;
    *) echo 'openjdk version "17.0.15"' >&2 ;;
esac
"""


def prepare(agent: LabAgent, home: Path, public_key: str) -> None:
    """Prepare an agent for the controller and for Jenkins, and restart its sshd."""
    home.mkdir(exist_ok=True)
    os.chown(home, UID, UID)
    for file, line in (
        ("passwd", f"{USER}:x:{UID}:{UID}::{home}:/bin/sh"),
        ("group", f"{USER}:x:{UID}:"),
        ("shadow", f"{USER}:*:19000:0:99999:7:::"),
    ):
        agent.run(["sh", "-ec", f"echo {shlex.quote(line)} >> /etc/{file}"], check=True)
    _write(agent, f"/etc/ssh/authorized_keys.d/{USER}", public_key + "\n", "0644")
    _write(agent, "/etc/ssh/sshd_config", _SSHD + sshd_settings("tunnel"), "0644")
    agent.run(["sh", "-ec", _OVERLAY, "overlay", "/usr/local/bin", "/run/programs"], check=True)
    _write(agent, "/usr/local/bin/tunnelmgr-wait", render("wait"), "0755")
    _write(agent, "/usr/local/bin/java", _JAVA.format(python=SYSTEM_PYTHON), "0755")
    agent.restart_sshd()


def hide_http_clients(agent: LabAgent) -> None:
    """Hide curl and wget from the agent's programs."""
    for name in ("curl", "wget"):
        if place := shutil.which(name):
            agent.run(["mount", "--bind", "/dev/null", str(Path(place).resolve())], check=True)


def _write(agent: LabAgent, path: str, text: str, mode: str) -> None:
    agent.run(["tee", path], feed=text, check=True)
    agent.run(["chmod", mode, path], check=True)
