"""The fixtures of the tests of the Ansible roles: the Debian package that they install, and a fleet of machines."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.network import Lab
from tests.ansible.fleet import Fleet
from tests.packaging.conftest import built


@pytest.fixture(scope="session")
def package() -> Path:
    """Build the Debian package; `DEBIAN_PACKAGE` names one that exists already."""
    if given := os.environ.get("DEBIAN_PACKAGE"):
        return Path(given)
    (file,) = (built() / "dist").glob("*.deb")
    return file


@pytest.fixture(scope="module")
def empty_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Open a lab in which Ansible runs, without machines."""
    folder = tmp_path_factory.mktemp("fleet")
    with Lab(folder / "lab") as lab:
        yield Fleet(lab, folder / "operator")
