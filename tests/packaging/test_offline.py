"""The documented installation from a wheelhouse works literally on a machine that reaches no network."""

import re
import shutil
from pathlib import Path

import pytest

from lab import processes
from lab.booted_machine import BootedMachine
from tests.packaging.conftest import ROOT, show, tools

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]


def commands(heading: str) -> list[str]:
    """Return the lines of code below a heading of docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^##+ {heading}\n(.*?)(?=^##)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^    (.+)$", body, re.MULTILINE)


def documented() -> list[str]:
    """Return the commands of the installation from the wheel, with the offline ones of pip instead of its own."""
    online = commands("Install from the wheel")
    on_the_machine = online[next(number for number, line in enumerate(online) if line.startswith("apt-get")) :]
    offline = [line for line in commands("Without a network") if "/pip " in line]
    fetching, local = (number for number, line in enumerate(on_the_machine) if "/pip " in line)
    assert "--no-index" in offline[0]
    on_the_machine[fetching], on_the_machine[local] = offline
    return on_the_machine


def test_the_daemon_runs_from_a_wheelhouse(checkout: Path, bare_machine: BootedMachine, tmp_path: Path) -> None:
    """`make wheelhouse` collects all that the documented commands need, and the unit starts what they install."""
    words = ["make", "-C", str(checkout), "wheelhouse", f"DIST={tmp_path / 'dist'}", "PYTHON=/usr/bin/python3"]
    processes.run([*words, *tools()], check=True, timeout=300.0)
    shutil.copytree(tmp_path / "dist/wheelhouse", bare_machine.path("/root/wheelhouse"))
    shutil.copytree(ROOT / "systemd", bare_machine.path("/root/systemd"))

    for line in documented():
        bare_machine.shell(f"cd /root && {line}", timeout=300.0)
    bare_machine.shell("tunnelmgr init && systemctl enable --now tunnelmgr")

    assert show(bare_machine, "ActiveState") == "active"
    assert bare_machine.shell("systemctl is-active tunnelmgr-backup.timer") == "active"
