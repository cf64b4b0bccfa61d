"""The packages of this checkout, built once, and a machine on which the Debian package is installed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import processes
from tests.packaging.machine import Machine, make_base

ROOT = Path(__file__).parents[2]


def build(checkout: Path) -> Path:
    """Build the packages in a checkout, with the environments of this one, and return the folder of the results."""
    tools = [f"{name}={ROOT / 'build' / name.lower()}" for name in ("BACKEND", "SBOM")]
    processes.run(["make", "-C", str(checkout), "packages", *tools], check=True, timeout=600.0)
    return checkout / "dist"


def clone(folder: Path) -> Path:
    """Clone this checkout, with its uncommitted changes of tracked files, into a folder."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    changes = subprocess.run(["git", "diff", "--binary", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    if changes:
        subprocess.run(["git", "apply", "-"], cwd=folder, input=changes, check=True)
    return folder


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone this checkout, because a build writes the version into it."""
    return clone(tmp_path_factory.mktemp("build") / "one")


@pytest.fixture(scope="session")
def dist(checkout: Path) -> Path:
    """Build the packages once."""
    return build(checkout)


@pytest.fixture(scope="session")
def package(dist: Path) -> Path:
    """Return the Debian package."""
    (file,) = dist.glob("*.deb")
    return file


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a minimal Debian; `DEBIAN_ROOT` names one that exists already."""
    if given := os.environ.get("DEBIAN_ROOT"):
        yield Path(given)
        return
    folder = tmp_path_factory.mktemp("debian") / "base"
    make_base(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def installed(base: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Install the package on a machine without a network, and return the folders of its root."""
    machine = Machine([base], tmp_path_factory.mktemp("machine") / "installed")
    with machine.booted():
        machine.install(package)
    return [machine.folder / "upper", base]


@pytest.fixture
def machine(installed: list[Path], tmp_path: Path) -> Iterator[Machine]:
    """Boot a machine on which the package is installed and not configured."""
    with Machine(installed, tmp_path / "machine").booted() as booted:
        yield booted


@pytest.fixture
def bare_machine(base: Path, tmp_path: Path) -> Iterator[Machine]:
    """Boot a machine without the package."""
    with Machine([base], tmp_path / "machine").booted() as booted:
        yield booted


@pytest.fixture
def configured(machine: Machine) -> Machine:
    """Configure the installed package as its documentation says: a key for the daemon's user."""
    machine.shell("tunnelmgr init && chown tunnelmgr: /etc/tunnelmgr/id_ed25519")
    return machine
