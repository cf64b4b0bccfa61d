"""What the trust methods' tests stand on."""

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
