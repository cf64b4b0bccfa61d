"""Machines with a real systemd and a fresh Debian, in namespaces: nothing that is installed there changes the host."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab.processes import Processes, run, until

BOOT = Path(__file__).with_name("boot.sh")
BASE_PACKAGES = "python3,adduser,systemd,systemd-sysv,logrotate,man-db,bash-completion,zsh,fish,procps"


class Machine:
    """A running machine; `lower` are the folders below its own changes, the uppermost first."""

    def __init__(self, lower: list[Path], folder: Path) -> None:
        self.lower, self.folder = lower, folder
        self._first = 0

    @contextlib.contextmanager
    def booted(self) -> Iterator["Machine"]:
        """Boot it, and end everything in it afterwards."""
        processes = Processes()
        self.folder.mkdir(parents=True)
        words = ["sh", str(BOOT), ":".join(map(str, self.lower)), str(self.folder)]
        process = processes.start(words, log=self.folder / "boot.log")
        try:
            self._first = until(lambda: _child(process.pid, "systemd"), "the machine starts")
            until(self._is_running, "systemd is running", timeout=60.0)
            yield self
        finally:
            processes.end_all()
            self._remove_group()

    def run(self, *words: str, check: bool = True, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a program in it."""
        inside = ["nsenter", "-t", str(self._first), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        environment = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"]
        return run([*inside, *environment, *words], check=check, timeout=timeout)

    def shell(self, line: str) -> str:
        """Run a line of shell in it and return its stdout."""
        return self.run("sh", "-c", line).stdout.strip()

    def path(self, name: str) -> Path:
        """Return the path, from the host, of a file in it."""
        return Path(f"/proc/{self._first}/root") / name.lstrip("/")

    def install(self, package: Path) -> subprocess.CompletedProcess[str]:
        """Install a package with apt, without a terminal."""
        inside = self.path("/root") / package.name
        inside.write_bytes(package.read_bytes())
        frontend = ("env", "DEBIAN_FRONTEND=noninteractive")
        done = self.run(*frontend, "apt-get", "install", "-y", "-q", f"/root/{package.name}", timeout=300.0)
        inside.unlink()
        return done

    def files(self) -> set[str]:
        """Return every file of its root, except those of dpkg, apt, the journal, caches and temporary folders."""
        except_for = "/proc /sys /dev /run /tmp /root /var/lib/dpkg /var/lib/apt /var/log/apt /var/log/dpkg.log"
        except_for += " /var/log/journal /var/cache"
        pruned = " -o ".join(f"-path {name}" for name in except_for.split())
        return set(self.shell(rf"find / \( {pruned} \) -prune -o -print").splitlines())

    def _is_running(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    def _remove_group(self) -> None:
        group = Path((self.folder / "group").read_text().strip())
        for folder in sorted((entry for entry in group.rglob("*") if entry.is_dir()), reverse=True):
            until(lambda folder=folder: _removed(folder), f"{folder} has no processes")
        until(lambda: _removed(group), f"{group} has no processes")


def make_base(folder: Path) -> None:
    """Install a minimal Debian into a folder, from the archive that this machine uses."""
    words = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", f"--include={BASE_PACKAGES}"]
    run([*words, _release(), str(folder)], check=True, timeout=900.0)


def _release() -> str:
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return facts["VERSION_CODENAME"].strip('"')


def _child(pid: int, name: str) -> int:
    """Return the child of this name of a process, or 0; before it, the process has others for a moment."""
    with contextlib.suppress(FileNotFoundError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                return int(child)
    return 0


def _removed(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            folder.rmdir()
        except OSError:
            return False
    return True
