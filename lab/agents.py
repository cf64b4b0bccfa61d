"""Build agents with a real OpenSSH: each has its own address, users, process table and host key.

An agent is a network namespace and, inside it, private mount, host name and process namespaces whose first process only
sleeps. So sshd may come and go while the machine lives, and ending that first process ends everything on the machine.
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
from lab.namespaces import Machine
from lab.processes import LabError, Process, until
from tunnelmgr.hooks import key_file, sshd_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.namespaces import Namespace, Switch

SSH_PORT = 22
LOWEST_PRIORITY = 19  # setpriority(2)

# $1 host name, $2 the agent's folder. The overlay covers all of /etc: a bind mount of a single file silently vanishes
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

# sshd takes the first value it reads, so an agent's own options go above these; but a Match block outweighs both.
_SSHD_DEFAULTS = """\
HostKey /etc/ssh/lab_host_key
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
Subsystem sftp internal-sftp
ClientAliveInterval 2
ClientAliveCountMax 2
LogLevel VERBOSE
PidFile none
"""


@dataclass(frozen=True)
class AgentOptions:
    """How an agent is set up."""

    user: str
    authorized_keys: str  # whole text of the user's authorized_keys
    host_key: Path | None = None  # a private key to use, as agents of one machine image do; None makes a new one
    sshd_options: tuple[str, ...] = ()  # lines of sshd_config, stronger than the defaults


class LabAgent(Machine):
    """A build agent: an address, a host key, and an sshd that may be stopped, paused, cut off or killed."""

    def __init__(self, name: str, namespace: Namespace, switch: Switch, folder: Path) -> None:
        super().__init__(namespace.processes, netns=Path("/run/netns") / namespace.name)
        self.name = name
        self.ip = namespace.ip
        self.host_key = ""  # "ssh-ed25519 AAAA…" once booted
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
        """Start the machine and its sshd; return when sshd listens."""
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
        """Kill sshd and every session it has; the machine lives on and refuses connections."""
        for pid, _ in self._sshd_processes():
            processes.kill(pid)
        if self._sshd:
            self._sshd.end()
        until(lambda: not any(self._sshd_processes()) and not self.listeners(SSH_PORT), f"sshd of {self.name} ends")

    def restart_sshd(self) -> None:
        """Kill sshd with all its sessions and start it again."""
        self.stop_sshd()
        self.start_sshd()

    def pause_sshd_sessions(self) -> None:
        """Freeze the sessions: their connections stay open and nothing answers on them."""
        self._signal_sessions(signal.SIGSTOP)

    def resume_sshd_sessions(self) -> None:
        """Let frozen sessions go on."""
        self._signal_sessions(signal.SIGCONT)

    def yield_cpu(self) -> None:
        """Run its sshd and every session at the lowest priority: a real agent has a machine of its own."""
        for pid, _ in self._sshd_processes():
            yield_cpu(pid)

    def log(self) -> str:
        """All that sshd has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def authorize(self, authorized_keys: str, *, user: str = "tunnel") -> None:
        """Replace the user's authorized_keys; it counts for connections made from now on."""
        self.run(["tee", key_file(user)], feed=_whole_lines(authorized_keys), check=True)

    def drop(self, port: int = SSH_PORT) -> None:
        """Silently lose every packet to and from this port of the agent until `heal`."""
        self._firewall(f"add rule inet lab in tcp dport {port} drop; add rule inet lab out tcp sport {port} drop")

    def reject(self, port: int = SSH_PORT) -> None:
        """Answer every packet to this port of the agent with a TCP reset until `heal`."""
        self._firewall(f"add rule inet lab in tcp dport {port} reject with tcp reset")

    def cut_connections(self, port: int = SSH_PORT) -> None:
        """Silently lose every packet of the connections that stand to this port, and of no other, until `heal`."""
        ways = (f"in tcp dport {port} tcp sport", f"out tcp sport {port} tcp dport")
        self._firewall("; ".join(f"add rule inet lab {way} {peer} drop" for peer in self._peers(port) for way in ways))

    def forget_connections(self, port: int = SSH_PORT) -> None:
        """Lose the packets of the connections that stand to this port, as a NAT does that has lost its state.

        Until `heal`. What begins or resets a connection passes, as do answers without data.
        """
        ways = (
            f"in tcp flags & (syn | rst) == 0x0 tcp dport {port} tcp sport",
            f"out tcp flags & psh == psh tcp sport {port} tcp dport",
        )
        self._firewall("; ".join(f"add rule inet lab {way} {peer} drop" for peer in self._peers(port) for way in ways))

    def heal(self) -> None:
        """Undo `drop`, `reject`, `cut_connections` and `forget_connections`."""
        self.run(["nft", "add table inet lab; delete table inet lab"], check=True)

    def reset_connections(self, port: int = SSH_PORT) -> None:
        """Reset every TCP connection to this port of the agent, at both its ends."""
        self.run(["ss", "-K", f"sport = :{port}"], check=True)

    def kill(self) -> None:
        """Let the machine vanish without a last packet; its IP is free for another agent at once."""
        self._switch.unplug(self._namespace)
        if self._machine:
            self._machine.end()
        self._switch.remove(self._namespace)

    def _peers(self, port: int) -> list[str]:
        """Return the other side's port of each connection that stands to this port."""
        shown = self.run(["ss", "-Htn", "state", "established", f"sport = :{port}"], check=True).stdout
        return [line.split()[3].rpartition(":")[2] for line in shown.splitlines()]

    def _firewall(self, rules: str) -> None:
        hook = "{{ type filter hook {}put priority 0; }}"
        chains = "; ".join(f"add chain inet lab {way} {hook.format(way)}" for way in ("in", "out"))
        self.heal()
        self.run(["nft", f"add table inet lab; {chains}; {rules}"], check=True)

    def _signal_sessions(self, sig: int) -> None:
        for pid, title in self._sshd_processes():
            if "[listener]" not in title:
                processes.kill(pid, sig)

    def _sshd_processes(self) -> Iterator[tuple[int, str]]:
        """Yield the id (as the host counts) and title of each sshd on this machine, known by its process namespace."""
        if not self._machine:
            return
        home = Path(f"/proc/{self._machine.pid}/ns/pid_for_children").readlink()
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile, or it is nothing we may look into
                if (place / "ns/pid").readlink() != home or (place / "comm").read_text() != "sshd\n":
                    continue
                if title := (place / "cmdline").read_text().rstrip("\0"):  # a zombie has none
                    yield int(place.name), title


def yield_cpu(pid: int) -> None:
    """Run a process at the lowest priority, and with it its group where the kernel schedules by sessions (sched(7))."""
    os.setpriority(os.PRIO_PROCESS, pid, LOWEST_PRIORITY)
    with contextlib.suppress(OSError):  # a kernel without autogroups
        Path(f"/proc/{pid}/autogroup").write_text(str(LOWEST_PRIORITY))


def _write_etc(etc: Path, options: AgentOptions) -> str:
    """Write what the agent's /etc has beyond the host's, and return its public host key."""
    keys = etc / "ssh/authorized_keys.d"
    keys.mkdir(parents=True)
    (keys / options.user).write_text(_whole_lines(options.authorized_keys))
    (etc / "ssh/sshd_config").write_text(_sshd_config(options))
    for file, rest in (
        ("passwd", "x:4242:4242::/:/usr/sbin/nologin"),
        ("group", "x:4242:"),
        # Not `!`: without PAM, sshd takes that for a locked account and refuses every key.
        ("shadow", "*:19000:0:99999:7:::"),
    ):
        others = [
            line for line in Path("/etc", file).read_text().splitlines() if not line.startswith(options.user + ":")
        ]
        (etc / file).write_text("\n".join([*others, f"{options.user}:{rest}", ""]))
    (etc / "shadow").chmod(0o600)
    return _write_host_key(etc / "ssh/lab_host_key", options.host_key)


def _sshd_config(options: AgentOptions) -> str:
    """Return sshd's configuration: the documented settings for the user, but for what is set otherwise here."""
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
