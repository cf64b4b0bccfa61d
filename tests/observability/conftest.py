"""Fixtures for the tests of the audit log."""

from pathlib import Path

import pytest

from tests.observability.sealed_log import SealedLog


@pytest.fixture
def sealed(tmp_path: Path) -> SealedLog:
    """Make an audit log with a key, and no process that writes it."""
    return SealedLog(tmp_path)
