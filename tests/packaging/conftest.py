"""The packages of this checkout, built once, and a machine on which the Debian package is installed."""

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import processes
from lab.booted_machine import BootedMachine
from lab.debian_root import debian_root
from lab.network import Lab

ROOT = Path(__file__).parents[2]
ADDRESS = "10.77.0.10"
PLACE = ROOT / "build/tested"
"""Where the packages of this checkout's present state are built, once for all processes that run tests."""


def tools() -> list[str]:
    """Return the settings of `make` for a build in another folder with the environments of this one."""
    return [f"{name}={ROOT / 'build' / name.lower()}" for name in ("BACKEND", "SBOM")]


def build(checkout: Path, target: str = "deb") -> Path:
    """Build a target of the Makefile in a checkout, and return the folder of the results."""
    for lock in checkout.glob("requirements-*.lock"):
        shutil.copystat(ROOT / lock.name, lock)  # a newer one would have the environments made again
    processes.run(["make", "-C", str(checkout), target, *tools()], check=True, timeout=600.0)
    return checkout / "dist"


def clone(folder: Path) -> Path:
    """Clone this checkout, with its uncommitted changes of tracked files, into a folder."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    changes = subprocess.run(["git", "diff", "--binary", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    if changes:
        subprocess.run(["git", "apply", "-"], cwd=folder, input=changes, check=True)
    return folder


def install(machine: BootedMachine, package: Path) -> subprocess.CompletedProcess[str]:
    """Install a package with apt, without a terminal."""
    inside = machine.path("/root") / package.name
    inside.write_bytes(package.read_bytes())
    words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", f"/root/{package.name}"]
    done = machine.run(words, check=True, timeout=300.0)
    inside.unlink()
    return done


def show(machine: BootedMachine, name: str) -> str:
    """Return a property of the daemon's unit."""
    return machine.shell(f"systemctl show --property {name} --value tunnelmgr.service")


def built() -> Path:
    """Return a clone of this checkout in which the packages are built."""
    words = ["sh", "-c", "git rev-parse HEAD; git diff --binary HEAD; echo $DEBIAN_SUITE"]
    state = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    folder = PLACE / hashlib.sha256(state).hexdigest()[:12]
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            for old in PLACE.glob("*/"):
                shutil.rmtree(old)
            build(clone(folder))
            (folder / "built").touch()
    return folder


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Clone this checkout, because a build writes the version into it, and build its packages there."""
    return built()


@pytest.fixture(scope="session")
def dist(checkout: Path) -> Path:
    """Return the folder of the packages."""
    return checkout / "dist"


@pytest.fixture(scope="session")
def package(dist: Path) -> Path:
    """Return the Debian package."""
    (file,) = dist.glob("*.deb")
    return file


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Open a lab."""
    with Lab(tmp_path / "lab") as lab:
        yield lab


@dataclass(frozen=True)
class Installation:
    """The folders of the root of a machine on which the package was installed, and what was on it before."""

    layers: tuple[Path, ...]
    files_before: set[str]
    users_before: str


def files(machine: BootedMachine) -> set[str]:
    """Return every file of its root, except those of dpkg, apt, the journal, caches and temporary folders."""
    omitted = "/proc /sys /dev /run /tmp /root /var/lib/dpkg /var/lib/apt /var/log/apt /var/log/dpkg.log"
    omitted += " /var/log/journal /var/cache /var/tmp"
    pruned = " -o ".join(f"-path {name}" for name in omitted.split())
    return set(machine.shell(rf"find / \( {pruned} \) -prune -o -print").splitlines())


def users(machine: BootedMachine) -> str:
    """Return the users and groups of a machine."""
    return machine.shell("cat /etc/passwd /etc/group")


@pytest.fixture(scope="session")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Install the package on a machine that reaches no other."""
    with Lab(tmp_path_factory.mktemp("installed")) as lab:
        machine = lab.boot("registry", ADDRESS, [debian_root()])
        before = files(machine), users(machine)
        install(machine, package)
    return Installation(machine.layers, *before)


@pytest.fixture
def machine(lab: Lab, installed: Installation) -> BootedMachine:
    """Boot a machine on which the package is installed and not configured."""
    return lab.boot("registry", ADDRESS, installed.layers)


@pytest.fixture
def bare_machine(lab: Lab) -> BootedMachine:
    """Boot a machine without the package."""
    return lab.boot("registry", ADDRESS, [debian_root()])


@pytest.fixture
def configured(machine: BootedMachine) -> BootedMachine:
    """Make the daemon's key, as the documentation says."""
    machine.shell("tunnelmgr init")
    return machine
