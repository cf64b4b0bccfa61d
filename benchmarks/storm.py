"""Agents that appear all at once: the time until the first tunnel is up, half of them, and all.

Compared are as many `ssh -R`, and asyncssh's own forwarder with all tunnels in one process, with the same agents, each
of which has OpenSSH's own sshd on the same cores. The cost of the handshakes is the machine's CPU time while they run:
this CPU time divided by the cores is the least time in which all can be up. Ours is measured from the moment when the
controller knows the agents, and a tunnel is up once a probe has come through it; the others are up when they report the
forward. The lag of our event loop meanwhile is what the controller's own metric says. Needs root.

    python benchmarks/storm.py [--agents 1000] [--rounds 1] [--json FILE]
"""

import argparse
import json
import os
import re
import selectors
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE

from figures import Bar, Spread, interleaved, percentile, publish, table
from fleet import FleetAgent, count_listening, start_fleet, static_source
from tunnels import UP, forward_command, machine, ssh_command

from lab.agents import LabAgent
from lab.controller import DEFAULTS_HEAD, LabController
from lab.network import Lab
from lab.processes import until

FORWARD = "127.0.0.1:5000:127.0.0.1:5000"
KINDS = ("ssh", "asyncssh", "ours")
PATIENCE = 240.0
METRICS_PORT = 9750
HEAD = DEFAULTS_HEAD.replace("[ssh]", f'metrics = "127.0.0.1:{METRICS_PORT}"\n\n[ssh]')
LAG = re.compile(r'^tunnelmgr_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', re.MULTILINE)
"""A bucket of the metric: its upper bound, and how many lags were at most that."""


@dataclass(frozen=True)
class Storm:
    """One storm, in seconds; `machine_cpu` is the CPU time of the whole machine during it."""

    who: str
    number: int
    first: float
    half: float
    all: float
    machine_cpu: float
    lag_p99: float = 0.0
    """The smallest bound of the metric's buckets that 99 % of the loop's lags were below, in seconds; ours only."""

    @property
    def floor(self) -> float:
        """The least time for all tunnels, with every core busy."""
        return self.machine_cpu / (os.cpu_count() or 1)


class Site:
    """The agents, and one method per kind of tunnel."""

    def __init__(self, lab: Lab, folder: Path, agents: int) -> None:
        self.controller = LabController(lab.controller, folder / "controller")
        lab.registry(lab.controller, folder / "registry")
        self._lab = lab
        self._agent: LabAgent = lab.agent("fleet", "10.77.0.11", self.controller.authorized_keys)
        self.fleet: list[FleetAgent] = start_fleet(self._agent, agents, folder / "fleet")
        self.storms: list[Storm] = []

    def run(self, who: str, number: int) -> None:
        """Run one storm, and wait until its tunnels are gone."""
        storm = self._ours(number) if who == "ours" else self._peer(who, number)
        self.storms.append(storm)
        print(f"  {storm}", file=sys.stderr)
        until(lambda: not count_listening(self._agent, len(self.fleet)), "all of them are gone", timeout=60, pause=1.0)

    def _ours(self, number: int) -> Storm:
        controller = self.controller
        controller.log_file.unlink(missing_ok=True)
        controller.configure(static_source([]), probe_interval="15s", head=HEAD)
        controller.start()
        until(lambda: self._lab.controller.listeners(METRICS_PORT), "the controller shows its metrics")
        controller.configure(static_source(self.fleet), probe_interval="15s", head=HEAD)
        lags = self._lags()
        whole, began = busy(), time.time()
        controller.client.reload()
        all_up = lambda: controller.client.status()["up"] == len(self.fleet)  # noqa: E731
        until(all_up, "all are up", timeout=PATIENCE, pause=0.2)
        whole, lags = busy() - whole, self._lags() - lags
        phases = [line for line in map(json.loads, controller.log().splitlines()) if "was" in line and "phase" in line]
        known = min(map(moment_of, phases))
        ups = [moment_of(line) for line in phases if line["phase"] == "up"]
        print(f"  ours knew the agents after {known - began:.3f} s", file=sys.stderr)
        controller.kill()
        for file in controller.folder.glob("state.db*"):
            file.unlink()
        return replace(_storm("ours", number, [moment - known for moment in ups], whole), lag_p99=bound(lags, 0.99))

    def _lags(self) -> Counter[float]:
        """Return how many lags of the loop were in each bucket so far, by the bucket's upper bound in seconds."""
        with self._lab.controller.connect("127.0.0.1", METRICS_PORT) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        upto = [(float(limit), int(float(count))) for limit, count in LAG.findall(text)]
        return Counter(
            {limit: count - before for (limit, count), (_, before) in zip(upto, [(0.0, 0), *upto], strict=False)}
        )

    def _peer(self, who: str, number: int) -> Storm:
        """Start one of the others, and record the time at which it reports each forward."""
        key, where = self.controller.folder / "id_ed25519", self._lab.controller
        places = [(member.address, str(member.port)) for member in self.fleet]
        if who == "ssh":
            commands = [ssh_command("ssh", key, FORWARD, f"tunnel@{host}", "-v", "-p", port) for host, port in places]
        else:
            commands = [forward_command(key, map(":".join, places))]
        whole, began, output, ups = busy(), time.time(), selectors.DefaultSelector(), []
        started = []
        for argv in commands:
            started.append(where.popen(argv, stdout=PIPE if who != "ssh" else DEVNULL, stderr=PIPE))
            stream = started[-1].stderr if who == "ssh" else started[-1].stdout
            os.set_blocking(stream.fileno(), False)
            output.register(stream, selectors.EVENT_READ)
            ups += _reported(output, 0)
        while len(ups) < len(self.fleet):
            if time.time() > began + PATIENCE:
                raise SystemExit(f"{who}: only {len(ups)} of {len(self.fleet)} came up in {PATIENCE:g} s")
            ups += _reported(output, 1)
        whole = busy() - whole
        for one in started:
            one.end()
        return _storm(who, number, [moment - began for moment in ups], whole)


def _reported(output: selectors.BaseSelector, patience: float) -> list[float]:
    """Return the current time once for each forward that is reported in the new output."""
    found: list[float] = []
    for key, _ in output.select(patience):
        text = os.read(key.fd, 1 << 16)
        if not text:
            output.unregister(key.fileobj)
        found += [time.time()] * text.count(UP.encode())
    return found


def _storm(who: str, number: int, ups: Sequence[float], whole: float) -> Storm:
    ranked = sorted(ups)
    return Storm(who, number, ranked[0], ranked[len(ranked) // 2], ranked[-1], whole)


def bound(lags: Counter[float], share: float) -> float:
    """Return the smallest of the buckets' bounds that this share of the lags does not exceed."""
    return percentile(list(lags.elements()), share)


def moment_of(line: dict[str, str]) -> float:
    """Return the time of a line of the controller's log, in seconds since the epoch."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def busy() -> float:
    """Return the CPU seconds that the machine has spent on anything (`proc_stat(5)`: all but idle and iowait)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    return (sum(map(int, fields)) - int(fields[3]) - int(fields[4])) / os.sysconf("SC_CLK_TCK")


def rows(storms: Sequence[Storm]) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for who in KINDS:
        mine = [storm for storm in storms if storm.who == who]
        base = {storm.number: storm.all for storm in storms if storm.who == "ssh"}
        lines.append(
            [
                who,
                Spread.of(storm.first for storm in mine).text(),
                Spread.of(storm.half for storm in mine).text(".1f"),
                Spread.of(storm.all for storm in mine).text(".1f"),
                Spread.of(storm.all / base[storm.number] for storm in mine).text(),
                Spread.of(storm.floor for storm in mine).text(".1f"),
            ]
        )
    return lines


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place), options.agents)
        interleaved(KINDS, options.rounds, site.run)
    own = [storm for storm in site.storms if storm.who == "ours"]
    bars = [
        Bar("seconds to the first", Spread.of(storm.first for storm in own).median, 0.2, least=False),
        Bar(
            "time for all, relative to the CPU time of their handshakes",
            Spread.of(storm.all / storm.floor for storm in own).median,
            1.15,
            least=False,
        ),
        Bar("p99 of the loop's lag meanwhile, s", max(storm.lag_p99 for storm in own), 0.02, least=False),
    ]
    heads = ["who", "first, s", "half, s", "all, s", "all, to ssh -R", "machine's CPU over its cores, s"]
    publish("storm", machine(), table(heads, rows(site.storms)), bars, site.storms, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
