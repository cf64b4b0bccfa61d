"""The effect of one agent's bulk pull on another agent: on its small requests and on its tunnel's probes.

One agent repeatedly pulls a large blob on several connections, while another requests a small manifest thirty times per
second, and the controller probes the tunnels of a small fleet once per second. Rounds with and without the bulk pull
alternate; so does `ssh -R`, one process per agent, without a gate. The agents' sshds and the registry run on the same
cores and cause a part of the added latency: the figures of `ssh -R` show how much. Needs root.

    python benchmarks/fairness.py [--rounds 2] [--seconds 7] [--connections 4] [--json FILE]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from content import push, push_manifest
from figures import Bar, percentile, publish, table
from fleet import FleetAgent, start_fleet, static_source
from pull_load import MANIFESTS, MIB, fetch, request
from tunnels import machine, ssh_command

from lab.agents import LabAgent
from lab.controller import LabController
from lab.network import Lab
from lab.processes import Process, until

PORTS = {"ours": 5000, "ssh": 5001}
PAUSE = 0.03
CROWD = 16
"""Agents that only answer probes."""


@dataclass(frozen=True)
class Waits:
    """Milliseconds of one round."""

    who: str
    bulk: bool
    what: str
    milliseconds: tuple[float, ...]


def request_times(agent: LabAgent, port: int, manifest: str, seconds: float) -> tuple[float, ...]:
    """Request a manifest repeatedly on one connection; return the milliseconds of each request."""
    wire, room, found = request(manifest, MANIFESTS), memoryview(bytearray(MIB)), []
    with agent.connect("127.0.0.1", port, timeout=10) as connection:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            began = time.perf_counter()
            fetch(connection, wire, room)
            found.append((time.perf_counter() - began) * 1000)
            time.sleep(PAUSE)
    return tuple(found)


class Site:
    """Two agents, each with a tunnel of ours and one of `ssh -R`."""

    def __init__(self, lab: Lab, folder: Path, options: argparse.Namespace) -> None:
        self._options = options
        self._controller = LabController(lab.controller, folder / "controller")
        registry = lab.registry(lab.controller, folder / "registry")
        self._blob = push(lab, registry.url, 256 * MIB)
        self._manifest = push_manifest(lab, folder)
        line = self._controller.authorized_keys.replace('5000"', '*"')
        self._small, self._large = (
            lab.agent(name, ip, line) for name, ip in (("small", "10.77.0.11"), ("large", "10.77.0.12"))
        )
        key = self._controller.folder / "id_ed25519"
        for agent in (self._small, self._large):
            argv = ssh_command("ssh", key, f"127.0.0.1:{PORTS['ssh']}:127.0.0.1:5000", f"tunnel@{agent.ip}")
            lab.controller.popen(argv, log=folder / f"ssh-{agent.name}.log")
            until(lambda agent=agent: agent.listeners(PORTS["ssh"]), "ssh listens")
        fleet = start_fleet(lab.agent("fleet", "10.77.0.13", line), CROWD, folder / "fleet")
        members = [*map(FleetAgent.of, (self._small, self._large)), *fleet]
        self._controller.configure(static_source(members), probe_interval="1s")
        self._controller.start()
        for member in members:
            self._controller.wait_phase(member.name, "up")
        self.waits: list[Waits] = []

    def round(self, who: str, *, bulk: bool) -> None:
        """Measure one round."""
        load = self._pull(who) if bulk else None
        try:
            time.sleep(0.5)
            probes: set[tuple[str, str, float]] = set()
            found: list[float] = []
            deadline = time.monotonic() + self._options.seconds
            while time.monotonic() < deadline:
                found += request_times(self._small, PORTS[who], self._manifest, 0.5)
                if who == "ours":
                    seen = self._controller.client.agents()
                    probes |= {
                        (agent["agent"], agent["probed_at"], agent["probe_ms"])
                        for agent in seen
                        if agent["name"] != self._large.name
                    }
        finally:
            if load is not None:
                load.end()
        self.waits.append(Waits(who, bulk, "manifest", tuple(found)))
        if probes:
            self.waits.append(Waits(who, bulk, "probe", tuple(took for _, _, took in probes)))

    def _pull(self, who: str) -> Process:
        script = f"while :; do curl -fsS -o /dev/null http://127.0.0.1:{PORTS[who]}{self._blob} || sleep 1; done"
        return self._large.popen(["sh", "-c", " & ".join([f"({script})"] * self._options.connections) + " & wait"])


def took(waits: Sequence[Waits], who: str, what: str, *, bulk: bool) -> list[float]:
    """Return all milliseconds of one kind."""
    return [one for wait in waits if (wait.who, wait.what, wait.bulk) == (who, what, bulk) for one in wait.milliseconds]


def rows(waits: Sequence[Waits]) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for who, what in dict.fromkeys((one.who, one.what) for one in waits):
        cells = [who, what]
        for bulk in (False, True):
            mine = took(waits, who, what, bulk=bulk)
            cells += [str(len(mine)), f"{percentile(mine, 0.5):.1f}", f"{percentile(mine, 0.99):.1f}"]
        lines.append(cells)
    return lines


def added(waits: Sequence[Waits], what: str) -> float:
    """Return the milliseconds that the bulk pull adds to our p99."""
    quiet, loaded = (percentile(took(waits, "ours", what, bulk=bulk), 0.99) for bulk in (False, True))
    return loaded - quiet


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=7.0, help="of each round")
    parser.add_argument("--connections", type=int, default=min(4, 2 * (os.cpu_count() or 1)), help="of the bulk pull")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place), options)
        for number in range(options.rounds):
            for who in ("ours", "ssh") if number % 2 else ("ssh", "ours"):
                for bulk in (False, True):
                    site.round(who, bulk=bulk)
    bars = [
        Bar("added to the p99 of a manifest request, ms", added(site.waits, "manifest"), 20, least=False),
        Bar("added to the p99 of a probe, ms", added(site.waits, "probe"), 20, least=False),
    ]
    heads = ["who", "what", "alone: times", "p50, ms", "p99, ms", "beside a bulk pull: times", "p50, ms", "p99, ms"]
    publish("fairness", machine(), table(heads, rows(site.waits)), bars, site.waits, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
