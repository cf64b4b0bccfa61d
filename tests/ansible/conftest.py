"""The fixtures of the tests of the Ansible roles: what they install, and fleets of machines."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import processes
from lab.network import Lab
from tests.ansible.fleet import Fleet
from tests.packaging.conftest import built, clone

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def package() -> Path:
    """Build the Debian package; `DEBIAN_PACKAGE` names one that exists already."""
    if given := os.environ.get("DEBIAN_PACKAGE"):
        return Path(given)
    (file,) = (built() / "dist").glob("*.deb")
    return file


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    """Build a wheelhouse for the machines' Python; `WHEELHOUSE_PYTHON` names one like theirs on the host."""
    checkout = clone(tmp_path / "checkout")
    python = os.environ.get("WHEELHOUSE_PYTHON", "/usr/bin/python3")
    processes.run(["make", "-C", str(ROOT), "build/backend/.installed"], check=True, timeout=120.0)
    program = [str(ROOT / "build/backend/bin/python"), str(checkout / "packaging/build.py"), "wheelhouse"]
    processes.run([*program, "--python", python], check=True, timeout=600.0)
    return checkout / "dist/wheelhouse"


@pytest.fixture(scope="module")
def empty_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Open a lab, in which Ansible runs, for all tests of a file."""
    folder = tmp_path_factory.mktemp("fleet")
    with Lab(folder / "lab") as lab:
        yield Fleet(lab, folder / "operator")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Open a lab, in which Ansible runs, for one test."""
    with Lab(tmp_path / "lab") as lab:
        yield Fleet(lab, tmp_path / "operator")
