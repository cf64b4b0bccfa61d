"""A program on one agent floods the gate; another agent's requests, its audit entries and the disk are unaffected."""

import json
import sys
import time
from pathlib import Path

import pytest

from lab.agents import LOWEST_PRIORITY, LabAgent, set_priority
from lab.images import skopeo_copy
from tests.acceptance.conftest import IMAGE, Field

pytestmark = pytest.mark.acceptance

FLOOD_CLIENT = Path(__file__).parents[2] / "benchmarks" / "flood_client.py"
ASKED = ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"]
ASKED += ["-H", "Accept: application/vnd.oci.image.manifest.v1+json", "http://localhost:5000/v2/team/app/manifests/1"]
SECONDS = 4.0
CHANNELS = 32
GROWTH = 100_000
"""Bytes per second by which the log and the audit log together may grow."""


@pytest.fixture
def two(field: Field) -> tuple[LabAgent, LabAgent]:
    """Start a good and a bad agent, with `audit_required` and an image to pull."""
    good, bad = field.boot("good"), field.boot("bad")
    field.static(good, bad, probe_interval="2s")
    head, tail = field.controller.file.read_text().split("\n[ssh]", 1)
    audit = f'audit = "{field.controller.folder}/audit.jsonl"\naudit_required = true\n'
    field.controller.file.write_text(f"{head}{audit}\n[ssh]{tail}")
    field.controller.start()
    for agent in (good, bad):
        field.controller.wait_phase(agent.name, "up")
    field.push(good)
    bad.set_priority(LOWEST_PRIORITY)
    return good, bad


@pytest.mark.parametrize("kind", ["refused", "base", "missing", "chunks-1"])
def test_one_agents_flood_does_not_affect_another_agent(
    field: Field, two: tuple[LabAgent, LabAgent], kind: str
) -> None:
    """The other agent gets every answer and every audit entry, no entry is lost, and the disk fills slowly."""
    good, bad = two
    written = written_by(field)
    words = [sys.executable, str(FLOOD_CLIENT), "5000", kind, str(CHANNELS), str(SECONDS + 1)]
    load = bad.popen(words, log=field.folder / "flood.log")
    set_priority(load.pid, LOWEST_PRIORITY)

    began = time.monotonic()
    statuses = []
    while time.monotonic() - began < SECONDS:
        statuses.append(good.run(ASKED, timeout=30, check=True).stdout)
    grown = (written_by(field) - written) / (time.monotonic() - began)
    load.end()

    assert set(statuses) == {"200"}
    assert len(statuses) > SECONDS
    assert grown < GROWTH
    audit = field.controller.client.status()["audit"]
    assert audit == {"ok": True, "error": None, "lost": 0, "lost_recently": False, "forwards": []}
    assert field.controller.agent("good")["phase"] == "up"
    field.controller.stop()
    assert counted(field, "static:good", "GET") == len(statuses)


def test_a_pull_succeeds_beside_a_flood(field: Field, two: tuple[LabAgent, LabAgent]) -> None:
    """A real client pulls a whole image while another agent's program floods."""
    good, bad = two
    load = bad.popen(
        [sys.executable, str(FLOOD_CLIENT), "5000", "refused", "128", "30"], log=field.folder / "flood.log"
    )
    set_priority(load.pid, LOWEST_PRIORITY)

    pulled = skopeo_copy(good, IMAGE, f"oci:{field.folder / 'pulled'}:1")

    load.end()
    assert pulled.returncode == 0, pulled.stderr


def written_by(field: Field) -> int:
    """Return the bytes of the log and the audit log."""
    return field.controller.log_file.stat().st_size + (field.controller.folder / "audit.jsonl").stat().st_size


def counted(field: Field, agent: str, method: str) -> int:
    """Return the number of allowed requests for the manifest in the agent's entries."""
    entries = map(json.loads, (field.controller.folder / "audit.jsonl").read_text().splitlines())
    return sum(
        entry.get("count", 1)
        for entry in entries
        if entry.get("agent") == agent and entry.get("reference") == "1" and entry.get("method") == method
    )
