"""The results of pulls while parts are stopped, killed and cut: a short run of `make soak`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
MAY_COME_TO = {"whole", "cut", "refused", "503"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Cause each fault once; raises unless all clients pull whole blobs again after each."""
    file = tmp_path_factory.mktemp("kills") / "kills.json"
    words = [sys.executable, "benchmarks/kills.py", "--times", "1", "--json", str(file)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    return {one["kind"]: one for one in json.loads(file.read_text())["data"]}


def test_a_stop_and_a_reload_cut_no_pull_that_is_under_way(seen: dict[str, dict[str, Any]]) -> None:
    """A graceful stop and a reload of the controller cut no pull that is in progress."""
    for kind in ("controller stopped (SIGTERM) and started", "configuration reloaded"):
        assert set(seen[kind]["under_way"]) == {"whole"}, seen[kind]
    assert set(seen["configuration reloaded"]["later"]) == {"whole"}


def test_a_pull_ends_whole_cut_refused_or_with_503_and_never_hangs(seen: dict[str, dict[str, Any]]) -> None:
    """Every pull ends soon: whole, cut, refused or with 503."""
    for one in seen.values():
        assert set(one["under_way"]) | set(one["later"]) <= MAY_COME_TO, one


def test_the_gate_answers_503_only_if_the_registry_is_down(seen: dict[str, dict[str, Any]]) -> None:
    """A 503 means that the registry is down; while the tunnel is down, there is no answer at all."""
    for kind, one in seen.items():
        if not kind.startswith("registry"):
            assert "503" not in one["under_way"] | one["later"], one
