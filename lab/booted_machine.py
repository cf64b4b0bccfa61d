"""Machines with a real systemd and a Debian of their own, in namespaces: nothing that happens there changes the host.

`Lab.boot` boots one at an address of the lab, so that several reach each other, and none reaches another network. Its
root is an overlay: folders that machines may share, such as `debian_root()`, and above them its own changes, from which
further machines may be booted (`layers`). systemd runs its units as on any host, with their sandboxes, timers and
journal; its sshd admits root by the key that `authorize` adds.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from lab.namespaces import Machine
from lab.processes import LabError, Process, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lab.namespaces import Namespace

_BOOT = Path(__file__).with_name("boot.sh")
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root")
_BOOT_TIMEOUT = 60.0  # seconds; it takes about two


class BootedMachine(Machine):
    """A machine with systemd; a program that is run there gets a variable only from env(1)."""

    def __init__(self, name: str, namespace: Namespace, folder: Path, lower: Sequence[Path]) -> None:
        super().__init__(namespace.processes, netns=Path("/run/netns") / namespace.name)
        self.name = name
        self.ip = namespace.ip
        self._folder = folder
        self._lower = tuple(lower)
        self._process: Process | None = None
        self._first = 0  # the process id of its systemd, from the host

    @property
    def layers(self) -> tuple[Path, ...]:
        """The folders of its root, its own changes first: once it is off, another machine may have them as `lower`."""
        return (self._folder / "upper", *self._lower)

    def boot(self) -> None:
        """Boot it and return when systemd has started every unit."""
        self._folder.mkdir(parents=True)
        log = self._folder / "boot.log"
        lower = ":".join(map(str, self._lower))
        words = ["sh", str(_BOOT), self.name, str(self._netns), lower, str(self._folder)]
        self._process = process = self.processes.start(words, log=log)
        self._first = until(lambda: _find_systemd(process, log), f"{self.name} starts systemd")
        spaces = ("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
        self._exec_prefix = ("nsenter", "-t", str(self._first), *spaces, "env", "-i", *_ENVIRONMENT)
        until(self._is_running, f"systemd of {self.name} has started its units", timeout=_BOOT_TIMEOUT)

    def power_off(self) -> None:
        """Kill everything on it at once; its changes stay in its folder."""
        if not self._process:
            return
        self._process.end()
        self._process = None
        for group in self.groups:
            inner = sorted((entry for entry in group.rglob("*") if entry.is_dir()), reverse=True)
            for folder in (*inner, group):
                until(lambda folder=folder: _is_removed(folder), f"{folder} has no processes")  # type: ignore[misc]

    @property
    def groups(self) -> list[Path]:
        """The control groups of its systemd, one in each hierarchy, from the host."""
        return [Path(line) for line in (self._folder / "groups").read_text().splitlines()]

    def shell(self, line: str, *, timeout: float = 60.0) -> str:
        """Run a line of shell on it and return its stdout; raises LabError if the line fails."""
        return self.run(["sh", "-c", line], check=True, timeout=timeout).stdout.strip()

    def path(self, name: str) -> Path:
        """Return the path, from the host, of a file on it while it runs."""
        return Path(f"/proc/{self._first}/root") / name.lstrip("/")

    def authorize(self, public_key: str) -> None:
        """Let the owner of an SSH key log in as root."""
        line = "install -d -m 700 /root/.ssh && cat >>/root/.ssh/authorized_keys"
        self.run(["sh", "-c", line], feed=f"{public_key.strip()}\n", check=True)

    @property
    def host_key(self) -> str:
        """The public key of its sshd, as `ssh-ed25519 AAAA…`."""
        return " ".join(self.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])

    def _is_running(self) -> bool:
        state = self.run(["systemctl", "is-system-running"]).stdout.strip()
        return state in {"running", "degraded"}


def _find_systemd(process: Process, log: Path) -> int:
    """Return the process id of a machine's systemd, or 0 as long as boot.sh has not become it."""
    if process.poll() is not None:
        raise LabError(f"the machine does not boot: {log.read_text(errors='replace')[-800:]}")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a process may end while it is read
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
    return 0


def _is_removed(group: Path) -> bool:
    """Remove a control group; return whether it is gone, which it is only without processes."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
