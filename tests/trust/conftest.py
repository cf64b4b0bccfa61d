"""Fixtures for the tests of the trust methods."""

from pathlib import Path

import pytest

from tests.trust.keygen import Keygen


@pytest.fixture
def keygen(tmp_path: Path) -> Keygen:
    """Make an authority `ca` and a host key `host`."""
    keygen = Keygen(tmp_path)
    keygen.key("ca")
    keygen.key("host")
    return keygen
