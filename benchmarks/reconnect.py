"""The time an agent is without its registry after a lost connection, compared with autossh.

Each agent has a tunnel of ours or one of `ssh -R` under autossh; the same fault hits all of them at once, repeatedly.
After a reset both sides know. After a silent loss the agent's side is gone and the controller gets no packet, as if a
machine was restored or a NAT lost its state; only probes or keepalives detect it, every 5 seconds. The clock stops when
a request through the agent's own port is answered. Needs root.

    python benchmarks/reconnect.py [--agents 7] [--resets 3] [--cuts 2] [--json FILE]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from figures import Bar, percentile, publish, table
from fleet import FleetAgent, static_source
from pull_load import request
from tunnels import is_available, machine, ssh_command

from lab.agents import LabAgent
from lab.controller import LabController
from lab.network import Lab
from lab.processes import until

INTERVAL = 5
"""Seconds between two probes, and between two keepalives of ssh."""
PATIENCE = 60.0
STABLE = 11.0
"""Seconds for which the tunnels are up before a fault; one that is lost sooner is retried with increasing delays."""
PORT = 5000


@dataclass(frozen=True)
class Outage:
    """One agent's outage, in seconds."""

    who: str
    what: str
    seconds: float


def answers(agent: LabAgent) -> bool:
    """Report whether the registry answers on the agent's own port."""
    try:
        with agent.connect("127.0.0.1", PORT, timeout=1) as connected:
            connected.settimeout(1)
            connected.sendall(request("/v2/"))
            return connected.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def reset(agent: LabAgent) -> None:
    """Reset the connection at both ends."""
    agent.faults.reset_connections()


def vanish(agent: LabAgent) -> None:
    """End the connection on the agent, and drop every packet that would report it."""
    agent.faults.cut_connections()
    agent.faults.reset_connections()


def outage(agent: LabAgent, fault: Callable[[LabAgent], None]) -> float:
    """Cause the fault, and return for how many seconds requests fail."""
    fault(agent)
    began = time.monotonic()
    while not answers(agent):
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"{agent.name} does not come back within {PATIENCE:g} s")
        time.sleep(0.02)
    return time.monotonic() - began


class Site:
    """Agents with tunnels of either kind."""

    def __init__(self, lab: Lab, folder: Path, count: int) -> None:
        self._lab = lab
        self._controller = LabController(lab.controller, folder / "controller")
        lab.registry(lab.controller, folder / "registry")
        self._all: list[tuple[str, LabAgent]] = []
        self._hold_ours(self._boot("ours", 20, count))
        if is_available("autossh"):
            self._hold_autossh(self._boot("autossh", 40, count))
        self.outages: list[Outage] = []

    def cause(self, what: str, fault: Callable[[LabAgent], None]) -> None:
        """Cause a fault at all agents at once, after their tunnels were up for a while, and heal it."""
        for _, one in self._all:
            until(lambda one=one: answers(one), f"{one.name} is up", timeout=PATIENCE, pause=0.1)
        time.sleep(STABLE)
        with ThreadPoolExecutor(len(self._all)) as pool:
            found = [
                Outage(who, what, took)
                for (who, _), took in zip(
                    self._all, pool.map(lambda pair: outage(pair[1], fault), self._all), strict=True
                )
            ]
        print(f"  {what}: {', '.join(f'{one.who} {one.seconds:.2f}' for one in found)}", file=sys.stderr)
        self.outages += found
        for _, one in self._all:
            one.faults.heal()

    def _boot(self, who: str, first: int, count: int) -> list[LabAgent]:
        booted = [
            self._lab.agent(
                f"{who}{number}",
                f"10.77.0.{first + number}",
                self._controller.authorized_keys,
                sshd_options=["ClientAliveInterval 5", "ClientAliveCountMax 2"],
            )
            for number in range(count)
        ]
        self._all += [(who, one) for one in booted]
        return booted

    def _hold_ours(self, agents: Sequence[LabAgent]) -> None:
        self._controller.configure(static_source([FleetAgent.of(one) for one in agents]), probe_interval=f"{INTERVAL}s")
        self._controller.start()

    def _hold_autossh(self, agents: Sequence[LabAgent]) -> None:
        key = self._controller.folder / "id_ed25519"
        for one in agents:
            live = ["-o", f"ServerAliveInterval={INTERVAL}"]  # ssh uses the first of two values
            argv = ssh_command("autossh", key, f"127.0.0.1:{PORT}:127.0.0.1:5000", f"tunnel@{one.ip}", *live)
            self._lab.controller.popen(argv, env={"AUTOSSH_GATETIME": "0"})


def rows(outages: Sequence[Outage]) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for who, what in dict.fromkeys((one.who, one.what) for one in outages):
        mine = [one.seconds for one in outages if (one.who, one.what) == (who, what)]
        shown = [f"{value:.2f}" for value in (percentile(mine, 0.5), percentile(mine, 0.99), min(mine), max(mine))]
        lines.append([what, who, str(len(mine)), *shown])
    return sorted(lines)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=7, help="of each kind")
    parser.add_argument("--resets", type=int, default=3)
    parser.add_argument("--cuts", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place), options.agents)
        for _ in range(options.resets):
            site.cause("reset", reset)
        for _ in range(options.cuts):
            site.cause("silent loss", vanish)
    outages = site.outages
    own = {
        what: [one.seconds for one in outages if (one.who, one.what) == ("ours", what)]
        for what in ("reset", "silent loss")
    }
    bars = [
        Bar("p99 after a reset, s", percentile(own["reset"], 0.99), 1.5, least=False),
        Bar("the longest after a silent loss, in probe intervals", max(own["silent loss"]) / INTERVAL, 2, least=False),
    ]
    heads = ["what happens", "who", "times", "p50, s", "p99, s", "least", "most"]
    publish("reconnect", machine(), table(heads, rows(outages)), bars, outages, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
