"""A short run of `make cluster`: twenty agents are watched while members and database fail."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
FAULTS = ("planned restart", "kill -9", "database restarts", "member cut from the database for 25 s")


@pytest.mark.timeout(240)
def test_nothing_that_must_hold_breaks_in_a_turn_of_faults() -> None:
    """No two members listen on one agent, every gap is within its bound, and pins, seeds and quarantines remain."""
    words = [sys.executable, "benchmarks/cluster.py", "--agents", "20", "--seconds", "45", "--seed", "7"]
    words += ["--slack", "4", "--only", *FAULTS]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=220, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("holds") >= len(FAULTS)
    assert "BROKEN" not in ended.stdout
