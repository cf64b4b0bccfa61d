"""The audit log on a real disk that is full: with `audit_required`, no request passes without an entry."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.agents import LabAgent
from lab.processes import until
from tests.acceptance.conftest import Field

pytestmark = pytest.mark.acceptance

SMALL = 1024 * 1024
PULLS = 300


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def asked(agent: LabAgent, first: int, count: int) -> list[str]:
    """Request manifests, each with another tag, on one connection; return the statuses."""
    target = f"http://localhost:5000/v2/team/app/manifests/t[{first}-{first + count - 1}]"
    words = ["curl", "-s", "-m", "50", "-o", "/dev/null", "-w", "%{http_code}\\n", target]
    return agent.run(words, timeout=60).stdout.split()


def test_while_the_disk_is_full_no_pull_passes(disk: Path, field: Field) -> None:
    """None of 300 pulls passes without an entry; the gate opens when there is space, and the chain has no fault."""
    agent = field.boot("agent")
    field.static(agent, probe_interval="2s")
    head, tail = field.controller.file.read_text().split("\n[ssh]", 1)
    audit = f'audit = "{disk}/audit.jsonl"\naudit_required = true\n'
    field.controller.file.write_text(f"{head}{audit}\n[ssh]{tail}")
    field.controller.start()
    field.controller.wait_phase("agent", "up")
    assert asked(agent, 0, 10) == ["404"] * 10

    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    passed = asked(agent, 1000, 100)
    client = field.controller.client
    until(lambda: client.status()["audit"]["error"], "the full disk is noticed")
    refused = asked(agent, 2000, PULLS)

    assert set(refused) == {"503"}
    status = client.status()["audit"]
    assert not status["ok"]
    assert "no space left" in status["error"].lower()

    filler.unlink()
    until(lambda: client.status()["audit"]["error"] is None, "the audit is written again")
    assert asked(agent, 3000, 10) == ["404"] * 10
    lost = client.status()["audit"]["lost"]
    field.controller.stop()
    entries = [json.loads(line) for line in (disk / "audit.jsonl").read_text().splitlines()]
    audited = {entry["reference"] for entry in entries if entry["code"] == "request-allowed"}
    assert {f"t{1000 + at}" for at, status in enumerate(passed) if status == "404"} <= audited
    numbers = [entry["sequence"] for entry in entries]
    assert max(numbers) - len(numbers) == lost
    verified = field.controller.command("audit", "verify")
    assert verified.returncode == 0, verified.stderr
    assert ("lost before they could be written" in verified.stdout) == (lost > 0)
