"""What the controller's memory grows by while agents come and go.

In each round all agents leave and as many others appear, as instances of a cloud do. What grows for good is what is
remembered of those that left, for 7 days. Needs root.

    python benchmarks/churn.py [--agents 100] [--rounds 20] [--json FILE]
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from crowd import Member, gather, source_of
from figures import Bar, publish, table
from peers import machine

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


def measure(controller: LabController, crowd: list[Member], rounds: int) -> list[Round]:
    """Let so many rounds of agents come and go."""
    found = []
    for number in range(rounds):
        members = [replace(member, name=f"r{number}-{member.name}") for member in crowd]
        controller.configure(source_of(members), probe_interval="15s")
        if number:
            controller.client.reload()
        else:
            controller.start()
        names = {member.name for member in members}
        up = lambda: {one["name"] for one in controller.client.agents() if one["phase"] == "up"}  # noqa: E731
        until(lambda names=names, up=up: up() == names, f"round {number} is up", timeout=PATIENCE, pause=0.2)
        found.append(Round(number * len(crowd), resident(controller.pid)))
        print(f"  {found[-1]}", file=sys.stderr)
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        controller = LabController(lab.controller, Path(place) / "controller")
        lab.registry(lab.controller, Path(place) / "registry")
        agent = lab.agent("crowd", "10.77.0.11", controller.authorized_keys)
        rounds = measure(controller, gather(agent, options.agents, Path(place) / "crowd"), options.rounds)
    first, last = rounds[0], rounds[-1]
    bars = [Bar("memory after all rounds, to that after the first", last.resident / first.resident, 1.1, least=False)]
    lines = [[f"{one.ended:,}", f"{one.resident / 1e6:.0f}"] for one in rounds]
    publish("churn", machine(), table(["agents that have ended", "resident, MB"], lines), bars, rounds, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
