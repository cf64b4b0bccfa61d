"""`tunnelmgr doctor` on agents that are well, and on others that are each injured in one way."""

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lab.processes import until
from tests.ssh.ssh_server import generate, public

if TYPE_CHECKING:
    from tests.acceptance.conftest import Field

OTHER_PROCESS = (
    "import socket, time; s = socket.create_server(('127.0.0.1', 5000)); print('there', flush=True); time.sleep(600)"
)
"""Takes the registry's port."""

pytestmark = pytest.mark.acceptance


def examined(field: "Field", name: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status of `doctor` for an agent, and its steps by their names."""
    done = field.controller.command("doctor", name, "--json")
    return done.returncode, {step["step"]: step for step in json.loads(done.stdout)["steps"]}


def failed(steps: dict[str, dict[str, Any]]) -> list[str]:
    """Return the names of the steps that failed."""
    return [name for name, step in steps.items() if step["result"] == "failed"]


def test_each_injury_is_found_at_its_step_with_a_cure(field: "Field") -> None:
    """The steps before the injury pass; the failed one says what was found and what to do."""
    well, silent, locked, other, taken = (field.boot(name) for name in ("well", "silent", "locked", "other", "taken"))
    taken.popen(["python3", "-c", OTHER_PROCESS], log=field.folder / "other-process.log")
    until(lambda: "there" in (field.folder / "other-process.log").read_text(), "the other process listens")
    field.static(well, silent, locked, other, taken)
    locked.authorize("")
    silent.stop_sshd()
    text = field.controller.file.read_text()
    field.controller.file.write_text(text.replace(other.host_key, public(generate())))
    field.controller.start()
    field.controller.wait_phase("well", "up")
    for name in ("silent", "locked", "taken"):
        field.controller.wait_phase(name, "down")
    field.controller.wait_phase("other", "quarantined")

    code, steps = examined(field, "well")
    assert (code, failed(steps)) == (0, [])
    assert steps["request through registry"]["message"] == "the gate answers 200 to GET /v2/"
    assert steps["rights of the key"]["result"] == "ok"
    assert "round trip " in steps["network path"]["message"]
    assert steps["Nagle's algorithm"]["message"] == "off in the agent's sshd: it sends small packets at once"
    assert steps["window"]["message"].startswith("the agent's sshd takes 2048 KiB ahead of its client; at this round")
    assert all(step["took"] >= 0 for step in steps.values())

    found = {name: examined(field, name) for name in ("silent", "locked", "other", "taken")}
    assert {code for code, _ in found.values()} == {1}
    assert failed(found["silent"][1]) == ["connect"]
    assert "sshd listens" in found["silent"][1]["connect"]["cure"]
    assert failed(found["locked"][1]) == ["login"]
    assert "authorized-keys" in found["locked"][1]["login"]["cure"]
    assert failed(found["other"][1]) == ["evidence", "host key"]
    assert "tunnelmgr release static:other" in found["other"][1]["evidence"]["cure"]
    assert failed(found["taken"][1]) == ["listen on 127.0.0.1:5000"]
    assert "ss -ltnp" in found["taken"][1]["listen on 127.0.0.1:5000"]["cure"]
    assert field.controller.agent("well")["phase"] == "up"


def test_an_sshd_without_sessions_is_noted(field: "Field") -> None:
    """Its small packets wait for acknowledgements, so `doctor` says which setting causes that; the tunnel is up."""
    agent = field.boot("builder", None, "MaxSessions 0")
    field.up(agent)

    code, steps = examined(field, "builder")

    assert (code, failed(steps), steps["Nagle's algorithm"]["result"]) == (0, [], "note")
    assert "MaxSessions 0" in steps["Nagle's algorithm"]["cure"]


def test_the_bundle_has_what_a_report_needs_and_no_secret(field: "Field", tmp_path: Path) -> None:
    """Without an agent, `doctor` checks the controller itself; the archive is readable by its owner only."""
    agent = field.boot("builder")
    field.up(agent)
    key = (field.controller.folder / "id_ed25519").read_text().splitlines()[1]
    target = tmp_path / "report.tar.gz"

    done = field.controller.command("doctor", "--bundle", str(target))
    unknown = field.controller.command("doctor", "nobody")

    assert done.returncode == 0, done.stdout
    assert "1 of 1 agents are up" in done.stdout
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        parts = {name.partition("/")[2]: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    assert set(parts) == {
        "doctor.json",
        "versions.json",
        "config.toml",
        "status.json",
        "agents.json",
        "histories.json",
        "metrics.txt",
        "log.txt",
    }
    assert json.loads(parts["histories.json"])[0]["history"][0]["step"] == "seen"
    assert "asyncssh" in json.loads(parts["versions.json"])
    assert 'name = "builder"' in parts["config.toml"]
    assert not any(key in part for part in parts.values())
    assert unknown.returncode == 1
    assert "no agent matches" in unknown.stdout
