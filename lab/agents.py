"""Build agents with a real OpenSSH: each has its own address, users, process table and host key.

An agent is a network namespace and, in it, mount, host name and process namespaces whose first process only sleeps. So
sshd can stop and start while the machine runs, and killing the first process kills everything on the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab import processes
from lab.faults.packets import PacketFaults
from lab.namespaces import Machine
from lab.processes import LabError, Process, until
from tunnelmgr.hooks import key_file, sshd_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace, Switch

SSH_PORT = 22
LOWEST_PRIORITY, HIGH_PRIORITY = 19, -10  # setpriority(2)

# $1 host name, $2 the agent's folder. The overlay covers all of /etc: a bind mount of a single file disappears
# as soon as the host replaces that file. Its upper layer is a tmpfs because an overlay cannot stack on another.
_BOOT = """
hostname "$1"
mount -t tmpfs -o mode=755 tmpfs "$2/layer"
mkdir "$2/layer/work"
cp -a "$2/etc" "$2/layer/etc"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$2/layer/etc,workdir=$2/layer/work" /etc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
sysctl -q -w net.ipv4.tcp_retries2=5
echo booted
exec sleep infinity
"""

# sshd uses the first value it reads, so an agent's own options go above these; a Match block overrides both.
_SSHD_DEFAULTS = """\
HostKey /etc/ssh/lab_host_key
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
Subsystem sftp internal-sftp
AllowStreamLocalForwarding no
ForceCommand /usr/sbin/nologin
ClientAliveInterval 2
ClientAliveCountMax 2
LogLevel VERBOSE
PidFile none
"""


@dataclass(frozen=True)
class AgentOptions:
    """The settings of an agent."""

    user: str
    authorized_keys: str  # whole text of the user's authorized_keys
    host_key: Path | None = None  # a private key to use, as agents of one machine image do; None makes a new one
    sshd_options: tuple[str, ...] = ()  # lines of sshd_config, which override the defaults


class LabAgent(Machine):
    """A build agent: an address, a host key, an sshd that can be stopped or paused, and packet faults."""

    def __init__(self, name: str, namespace: Namespace, switch: Switch, folder: Path) -> None:
        super().__init__(namespace.processes, netns=Path("/run/netns") / namespace.name)
        self.name = name
        self.ip = namespace.ip
        self.host_key = ""  # "ssh-ed25519 AAAA…" once booted
        self.faults = PacketFaults(self, SSH_PORT)
        self._namespace = namespace
        self._switch = switch
        self._folder = folder
        self._log = folder / "sshd.log"
        self._machine: Process | None = None
        self._sshd: Process | None = None

    @property
    def netns(self) -> str:
        """The name of its network namespace."""
        return self._namespace.name

    def boot(self, options: AgentOptions) -> None:
        """Boot the machine, start its sshd and return when sshd listens."""
        self.host_key = _write_etc(self._folder / "etc", options)
        (self._folder / "layer").mkdir()
        console = self._folder / "console.log"
        unshare = ["unshare", "--fork", "--pid", "--kill-child", "--mount", "--uts", "--mount-proc"]
        boot = ["sh", "-ec", _BOOT, "boot", self.name, str(self._folder)]
        self._machine = machine = self._namespace.popen([*unshare, *boot], log=console)
        until(
            lambda: machine.poll() is not None or "booted" in console.read_text(), f"agent {self.name} boots", timeout=5
        )
        if machine.poll() is not None:
            raise LabError(f"agent {self.name} does not boot: {console.read_text()}")
        spaces = Path(f"/proc/{machine.pid}/ns")
        self._exec_prefix = (
            "nsenter",
            f"--mount={spaces / 'mnt'}",
            f"--uts={spaces / 'uts'}",
            f"--net={spaces / 'net'}",
            f"--pid={spaces / 'pid_for_children'}",
        )
        self.start_sshd()

    def start_sshd(self) -> None:
        """Start sshd and wait until it listens."""
        self._sshd = sshd = self.popen(["/usr/sbin/sshd", "-D", "-e"], log=self._log)
        until(lambda: sshd.poll() is not None or self.listeners(SSH_PORT), f"sshd of {self.name} listens")
        if sshd.poll() is not None:
            raise LabError(f"sshd of {self.name} does not start: {self.log()[-800:]}")

    def stop_sshd(self) -> None:
        """Kill sshd and every session; the machine keeps running and refuses connections."""
        for pid, _ in self.sshd_processes():
            processes.kill(pid)
        if self._sshd:
            self._sshd.end()
        until(lambda: not any(self.sshd_processes()) and not self.listeners(SSH_PORT), f"sshd of {self.name} ends")

    def restart_sshd(self) -> None:
        """Kill sshd with all its sessions and start it again."""
        self.stop_sshd()
        self.start_sshd()

    def pause_sshd_sessions(self) -> None:
        """Freeze the sessions: their connections stay open, and nothing answers on them."""
        self._signal_sessions(signal.SIGSTOP)

    def resume_sshd_sessions(self) -> None:
        """Resume the frozen sessions."""
        self._signal_sessions(signal.SIGCONT)

    def set_priority(self, nice: int) -> None:
        """Run sshd and its sessions at this priority, because a real agent has CPUs of its own.

        The lowest keeps a load that is made on the agent from taking the controller's CPU time; a high one keeps other
        processes from delaying what the agent measures.
        """
        for pid, _ in self.sshd_processes():
            set_priority(pid, nice)

    def log(self) -> str:
        """Return sshd's log."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def authorize(self, authorized_keys: str, *, user: str = "tunnel") -> None:
        """Replace the user's authorized_keys, for new connections."""
        self.run(["tee", key_file(user)], feed=_whole_lines(authorized_keys), check=True)

    def kill(self) -> None:
        """Stop the machine without a last packet; its IP is free for another agent at once."""
        self._switch.detach(self._namespace)
        if self._machine:
            self._machine.end()
        self._switch.remove(self._namespace)

    def _signal_sessions(self, sig: int) -> None:
        for pid, title in self.sshd_processes():
            if "[listener]" not in title:
                processes.kill(pid, sig)

    def sshd_processes(self) -> Iterator[tuple[int, str]]:
        """Yield the id (in the host's process namespace) and title of each sshd on this machine."""
        if not self._machine:
            return
        home = Path(f"/proc/{self._machine.pid}/ns/pid_for_children").readlink()
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or we may not read it
                if (place / "ns/pid").readlink() != home or (place / "comm").read_text() != "sshd\n":
                    continue
                if title := (place / "cmdline").read_text().rstrip("\0"):  # a zombie has none
                    yield int(place.name), title


def set_priority(pid: int, nice: int) -> None:
    """Run a process at a priority, and its session too if the kernel has autogroups (sched(7))."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(OSError):  # a kernel without autogroups
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def _write_etc(etc: Path, options: AgentOptions) -> str:
    """Write the files of the agent's /etc that differ from the host's; return the public host key."""
    keys = etc / "ssh/authorized_keys.d"
    keys.mkdir(parents=True)
    (keys / options.user).write_text(_whole_lines(options.authorized_keys))
    (etc / "ssh/sshd_config").write_text(_sshd_config(options))
    for file, rest in (
        ("passwd", "x:4242:4242::/:/usr/sbin/nologin"),
        ("group", "x:4242:"),
        # Not `!`: without PAM, sshd treats that as a locked account and refuses every key.
        ("shadow", "*:19000:0:99999:7:::"),
    ):
        others = [
            line for line in Path("/etc", file).read_text().splitlines() if not line.startswith(options.user + ":")
        ]
        (etc / file).write_text("\n".join([*others, f"{options.user}:{rest}", ""]))
    (etc / "shadow").chmod(0o600)
    return _write_host_key(etc / "ssh/lab_host_key", options.host_key)


def _sshd_config(options: AgentOptions) -> str:
    """Return sshd's configuration: the documented settings for the user, except those that are overridden here."""
    given = "\n".join([*options.sshd_options, _SSHD_DEFAULTS])
    ours = {line.split()[0].lower() for line in given.splitlines()}
    recipe = [line for line in sshd_settings(options.user).splitlines() if line.split()[0].lower() not in ours]
    return "\n".join([given, *recipe, ""])


def _write_host_key(place: Path, given: Path | None) -> str:
    if given:
        shutil.copyfile(given, place)
        place.chmod(0o600)
    else:
        processes.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(place)], check=True)
    public = processes.run(["ssh-keygen", "-y", "-f", str(place)], check=True).stdout
    return " ".join(public.split()[:2])


def _whole_lines(text: str) -> str:
    return text.rstrip("\n") + "\n"
