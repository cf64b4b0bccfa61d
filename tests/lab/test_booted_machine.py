"""Machines with systemd work as hosts do: units, SSH between them, settings of the network; and they leave nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.debian_root import debian_root
from lab.network import Lab

if TYPE_CHECKING:
    from lab.booted_machine import BootedMachine

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]  # the first test may have to make the Debian


def degraded(machine: BootedMachine) -> str:
    """Return the units of a machine that failed."""
    return machine.shell("systemctl list-units --failed --plain --no-legend")


def test_two_machines_reach_each_other_by_ssh(tmp_path: Path) -> None:
    """Root logs in by key from one machine to another, which has a host key of its own and no failed unit."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with Lab(tmp_path / "lab") as lab:
        one = lab.boot("one", "10.77.0.11", [debian_root()])
        two = lab.boot("two", "10.77.0.12", [debian_root()])
        two.authorize(key.with_suffix(".pub").read_text())
        one.run(["install", "-m", "600", "/dev/stdin", "/root/key"], feed=key.read_text(), check=True)
        one.run(["tee", "/root/known"], feed=f"10.77.0.12 {two.host_key}\n", check=True)

        answer = one.shell(
            "ssh -o BatchMode=yes -o UserKnownHostsFile=/root/known -i /root/key root@10.77.0.12"
            " 'hostname; cat /proc/1/comm; sysctl -w net.ipv4.tcp_retries2=5'"
        )

        assert answer.splitlines() == ["two", "systemd", "net.ipv4.tcp_retries2 = 5"]
        assert one.host_key != two.host_key
        assert (degraded(one), degraded(two)) == ("", "")


def test_a_machine_leaves_nothing(tmp_path: Path) -> None:
    """After the lab is closed, a machine's processes and control groups are gone; its changes stay as files."""
    with Lab(tmp_path / "lab") as lab:
        machine = lab.boot("one", "10.77.0.11", [debian_root()])
        machine.shell("echo kept >/root/file; systemd-run --unit=sleeper sleep 600")
        unit = machine.shell("systemctl show --property MainPID --value sleeper")
        group = Path((tmp_path / "lab/machine-1-one/group").read_text().strip())
        assert unit != "0"
        assert group.is_dir()

    assert not group.exists()
    assert (machine.layers[0] / "root/file").read_text() == "kept\n"
