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
        groups = machine.groups
        sleeper = [group for group in groups if (group / "system.slice/sleeper.service").is_dir()]

    assert sleeper
    assert not [group for group in groups if group.exists()]
    assert (machine.layers[0] / "root/file").read_text() == "kept\n"


def test_a_service_of_a_machine_has_its_groups_below_the_machines(tmp_path: Path) -> None:
    """A machine adds nothing to the host's control groups but its own, so that two machines do not share one."""
    with Lab(tmp_path / "lab") as lab:
        machine = lab.boot("one", "10.77.0.11", [debian_root()])
        machine.shell("systemd-run --unit=sleeper-of-a-test --property=MemoryMax=1G sleep 600")
        found = set(Path("/sys/fs/cgroup").rglob("sleeper-of-a-test.service"))
        ours = {place for place in found if any(place.is_relative_to(group) for group in machine.groups)}

    assert found
    assert found == ours
