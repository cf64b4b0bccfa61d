"""The growth of the controller's memory while agents come and go.

In each round all agents leave and as many others appear, like instances of a cloud. The controller remembers agents
that left for 7 days, which is the only lasting growth. Needs root.

    python benchmarks/churn.py [--agents 100] [--rounds 20] [--json FILE]
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from figures import Bar, publish, table
from fleet import FleetAgent, start_fleet, static_source
from tunnels import machine

from lab.controller import LabController
from lab.network import Lab
from lab.processes import until

PATIENCE = 120.0
KIB = 1024


@dataclass(frozen=True)
class Round:
    """The controller's resident memory once all agents of a round are up, in bytes."""

    ended: int
    resident: int


def resident(pid: int) -> int:
    """Return the bytes that a process has resident (`proc(5)`, VmRSS)."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS:")]
    return int(line.split()[1]) * KIB


def measure(controller: LabController, fleet: list[FleetAgent], rounds: int) -> list[Round]:
    """Run rounds in which all agents are replaced."""
    found = []
    for number in range(rounds):
        members = [replace(member, name=f"r{number}-{member.name}") for member in fleet]
        controller.configure(static_source(members), probe_interval="15s")
        if number:
            controller.client.reload()
        else:
            controller.start()
        names = {member.name for member in members}
        up = lambda: {one["name"] for one in controller.client.agents() if one["phase"] == "up"}  # noqa: E731
        until(lambda names=names, up=up: up() == names, f"round {number} is up", timeout=PATIENCE, pause=0.2)
        found.append(Round(number * len(fleet), resident(controller.pid)))
        print(f"  {found[-1]}", file=sys.stderr)
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        controller = LabController(lab.controller, Path(place) / "controller")
        lab.registry(lab.controller, Path(place) / "registry")
        agent = lab.agent("fleet", "10.77.0.11", controller.authorized_keys)
        rounds = measure(controller, start_fleet(agent, options.agents, Path(place) / "fleet"), options.rounds)
    first, last = rounds[0], rounds[-1]
    bars = [Bar("memory after all rounds, relative to the first", last.resident / first.resident, 1.1, least=False)]
    lines = [[f"{one.ended:,}", f"{one.resident / 1e6:.0f}"] for one in rounds]
    publish("churn", machine(), table(["agents that have ended", "resident, MB"], lines), bars, rounds, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
