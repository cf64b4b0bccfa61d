"""Good agents among hundreds that never answer: the time to recover after a cut, to come up, and after a crash.

Half of the dead agents accept TCP and stay silent, the others lose every packet; the controller has its defaults. First
all of them fail for a while. Then connections of good agents are reset, one after another; good agents appear, one
after another; and the controller is killed by `kill -9` and started again. Times end when a probe has come through the
tunnel; after the crash they start with the new process. Needs root.

    python benchmarks/starvation.py [--dead 300] [--good 20] [--cuts 60] [--json FILE]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from figures import Bar, percentile, publish, table
from fleet import FleetAgent, start_fleet, static_source
from storm import moment_of
from tunnels import cpu_of, machine

from lab.agents import SSH_PORT
from lab.controller import DEFAULTS_HEAD, LabController
from lab.faults.unresponsive import SILENT, UNREACHABLE, addresses
from lab.network import Lab
from lab.processes import until

PATIENCE = 400.0
"""Seconds after which the benchmark fails if an agent is not up."""
FAILING = 45.0
"""Seconds for which the dead agents fail before anything is measured."""
NEW = 10
"""Good agents that appear."""
CRASHES = 3
STABLE = 11.0
"""Seconds for which a tunnel is up before it is cut; one that is lost sooner is retried with increasing delays."""


@dataclass(frozen=True)
class Wait:
    """The seconds for which one good agent was without its tunnel."""

    what: str
    seconds: float


class Site:
    """The agents, good and dead, and the controller."""

    def __init__(self, lab: Lab, folder: Path, good: int, dead: int) -> None:
        self.controller = LabController(lab.controller, folder / "controller")
        lab.registry(lab.controller, folder / "registry")
        lab.add_unresponsive_networks()
        self._host = lab.agent("fleet", "10.77.0.11", self.controller.authorized_keys)
        fleet = start_fleet(self._host, good + NEW, folder / "fleet")
        self._good, self._coming = fleet[:good], fleet[good:]
        self._dead = [
            FleetAgent(f"dead-{place}", place, SSH_PORT, _some_key())
            for network in (SILENT, UNREACHABLE)
            for place in addresses(network, dead)
        ]
        self.waits: list[Wait] = []

    def start(self) -> None:
        """Start the controller, and let the dead agents fail for a while."""
        self._configure()
        self.controller.start()
        self._until_up(len(self._good))
        time.sleep(FAILING)

    def cost(self, seconds: float = 15.0) -> float:
        """Return the share of a core that the controller uses during these seconds."""
        before = cpu_of(self.controller.pid)
        time.sleep(seconds)
        return (cpu_of(self.controller.pid) - before) / seconds

    def cut(self, count: int) -> None:
        """Reset the connection of each good agent in turn."""
        for number in range(count):
            member, began = self._good[number % len(self._good)], time.time()
            if number and number % len(self._good) == 0:
                time.sleep(STABLE)
            began = time.time()
            self._host.faults.reset_connections(member.port)
            self._measure("cut", member, began)

    def appear(self) -> None:
        """Add good agents, one after another."""
        while self._coming:
            member = self._coming.pop()
            self._good.append(member)
            self._configure()
            began = time.time()
            self.controller.client.reload()
            self._measure("new", member, began)

    def crash(self) -> None:
        """Kill the controller with SIGKILL and start it again."""
        self.controller.kill()
        self.controller.log_file.unlink()
        began = time.time()
        self.controller.start()
        self._until_up(len(self._good))
        ups = sorted(self._ups().values())
        self.waits.append(Wait("restart, the first", ups[0] - began))
        self.waits.append(Wait("restart, all", ups[-1] - began))

    def _configure(self) -> None:
        self.controller.configure(static_source([*self._good, *self._dead]), probe_interval="15s", head=DEFAULTS_HEAD)

    def _until_up(self, count: int) -> None:
        until(lambda: len(self._ups()) >= count, f"{count} are up", timeout=PATIENCE, pause=0.1)

    def _ups(self) -> dict[str, float]:
        """Return the time at which each agent last came up, by its name."""
        lines = [line for line in self.controller.log().splitlines() if '"phase": "up"' in line]
        found = {}
        for line in map(json.loads, lines):
            found[line["agent"].rpartition(":")[2]] = moment_of(line)
        return found

    def _measure(self, what: str, member: FleetAgent, began: float) -> None:
        back = lambda: self._ups().get(member.name, 0.0)  # noqa: E731
        until(lambda: back() > began, f"{member.name} is up", timeout=PATIENCE, pause=0.05)
        self.waits.append(Wait(what, back() - began))


def _some_key() -> str:
    key = asyncssh.generate_private_key("ssh-ed25519")
    return " ".join(key.export_public_key().decode().split()[:2])


def rows(waits: Sequence[Wait]) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for what in dict.fromkeys(wait.what for wait in waits):
        mine = [wait.seconds for wait in waits if wait.what == what]
        figures = (percentile(mine, 0.5), percentile(mine, 0.99), min(mine), max(mine))
        lines.append([what, str(len(mine)), *(f"{figure:.2f}" for figure in figures)])
    return lines


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dead", type=int, default=300, help="of each kind")
    parser.add_argument("--good", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place), options.good, options.dead)
        site.start()
        cost = site.cost()
        site.cut(options.cuts)
        site.appear()
        for _ in range(CRASHES):
            site.crash()
    by_kind = {what: [wait.seconds for wait in site.waits if wait.what == what] for what in ("cut", "new")}
    restarts = [wait.seconds for wait in site.waits if wait.what == "restart, all"]
    bars = [
        Bar("p99 after a cut, s", percentile(by_kind["cut"], 0.99), 3, least=False),
        Bar("a new agent, at most, s", max(by_kind["new"]), 2, least=False),
        Bar("all good agents after kill -9 and a start, at most, s", max(restarts), 5, least=False),
    ]
    heads = ["what happens", "times", "p50, s", "p99, s", "least", "most"]
    text = table(heads, rows(site.waits)) + f"\n\nThe controller uses {100 * cost:.0f} % of a core."
    publish("starvation", machine(), text, bars, site.waits, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
