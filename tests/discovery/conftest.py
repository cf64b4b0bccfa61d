"""Fixtures: a project of Hetzner Cloud, and sources that poll it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hetzner import HetznerCloud
from tests.discovery.hetzner_project import PATIENT, Make, Time, write
from tunnelmgr.discovery.hetzner import HetznerConfig, HetznerSource


@pytest.fixture
def cloud() -> Iterator[HetznerCloud]:
    """Serve one project."""
    with HetznerCloud() as cloud:
        yield cloud


@pytest.fixture
def clock() -> Time:
    """Return a clock that the test controls."""
    return Time()


@pytest.fixture
def token_file(tmp_path: Path, cloud: HetznerCloud) -> Path:
    """Write the token into a file that only its owner can read."""
    return write(tmp_path / "hetzner.token", f"{cloud.token}\n")


@pytest.fixture
def make(cloud: HetznerCloud, token_file: Path, clock: Time) -> Make:
    """Return a function that makes a source of the project from configuration keys."""

    def made(timeout: tuple[float, float] = PATIENT, **keys: object) -> HetznerSource:
        given = {"name": "hetzner", "type": "hetzner", "token_file": str(token_file), "endpoint_url": cloud.endpoint}
        config = HetznerConfig.model_validate(given | keys)
        return HetznerSource(config, clock=clock, sleep=clock.sleep, timeout=timeout)

    return made
