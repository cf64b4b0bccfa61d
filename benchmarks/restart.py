"""One controller alone that is restarted while an agent pulls: how long every other agent is without a listener.

A stop lets the transfers in progress end before it closes anything, so that the length of the pull should cost nobody
else anything; what remains is the time in which no process runs. Agents with OpenSSH's own sshd look at their own
socket tables every 20 ms. Needs root.

The bar is that of a small fleet. With each further agent the last one waits for one more handshake, of which this
machine computes both ends; a fleet of hundreds that must not notice a restart needs two controllers (docs/cluster.md).

    python benchmarks/restart.py [--agents 5 20] [--rounds 5] [--json FILE]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from content import push
from figures import Bar, Spread, publish, table
from fleet import FleetAgent, count_listening, start_fleet, static_source
from listener_watch import WATCH_INTERVAL, WatchLog
from tunnels import machine

from lab.agents import LabAgent
from lab.controller import LabController
from lab.network import Lab
from lab.processes import Process, until

LIMIT = 1.0
"""The bar, in seconds."""
BLOB, RATE = 80 * 1024 * 1024, "4M"
"""Bytes of the pull, and curl's limit: together 20 s."""
PATIENCE = 60.0


class Site:
    """A controller with a fleet of agents, and one more agent that pulls."""

    def __init__(self, lab: Lab, folder: Path, agents: int) -> None:
        self._folder = folder
        self._count = agents
        # As an installed program is: with its modules compiled.
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        self._controller = LabController(lab.controller, folder / "controller", compiled)
        registry = lab.registry(lab.controller, folder / "registry")
        self._blob = push(lab, registry.url, BLOB)
        keys = self._controller.authorized_keys
        self._puller: LabAgent = lab.agent("puller", "10.77.0.11", keys)
        self._machine: LabAgent = lab.agent("fleet", "10.77.0.12", keys)
        fleet = start_fleet(self._machine, agents, folder / "fleet", watched=True)
        self._watch = WatchLog(folder / "fleet" / "listeners.jsonl")
        sources = static_source([FleetAgent.of(self._puller), *fleet])
        self._controller.configure(sources, probe_interval="15s", head=HEAD)
        self._controller.start()
        self._controller.wait_phase("puller", "up")
        self._all_listen()

    def restart(self) -> tuple[float, float]:
        """Restart while a pull is in progress; return the longest gap of another agent, and the pull's seconds."""
        pull, began = self._pull(), time.monotonic()
        self._controller.stop(PATIENCE)
        self._controller.start()
        self._all_listen()
        code = pull.wait(PATIENCE)
        if code:
            raise SystemExit(f"the pull was broken: curl ended with {code}")
        took = time.monotonic() - began
        time.sleep(5 * WATCH_INTERVAL)
        self._controller.wait_phase("puller", "up")
        return max(gap.seconds for gap in self._watch.history().gaps(began, time.monotonic())), took

    def _pull(self) -> Process:
        target = self._folder / "pulled"
        target.unlink(missing_ok=True)
        url = f"http://localhost:5000{self._blob}"
        pull = self._puller.popen(["curl", "-fsS", "--limit-rate", RATE, "-o", str(target), url])
        until(lambda: target.exists() and target.stat().st_size > BLOB / 50, "bytes arrive")
        return pull

    def _all_listen(self) -> None:
        count = self._count
        until(lambda: count_listening(self._machine, count) == count, "all listen", timeout=PATIENCE, pause=0.05)


HEAD = """\
[controller]
name = "registry-1"
state = "sqlite:///{folder}/state.db"
socket = "{folder}/tunnelmgr.sock"
drain = "60s"

[ssh]
key = "{folder}/id_ed25519"
probe_interval = "{probe_interval}"
"""


def measure(agents: int, rounds: int) -> list[tuple[float, float]]:
    """Restart a controller of this many agents repeatedly; return the longest gap and the pull's seconds each time."""
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place), agents)
        found = []
        for number in range(rounds):
            found.append(site.restart())
            gap, pull = found[-1]
            print(f"  {agents} agents, {number}: {gap:.3f} s without, a pull of {pull:.1f} s", file=sys.stderr)
        return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[5, 20], metavar="COUNT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found = {agents: measure(agents, options.rounds) for agents in sorted(options.agents)}
    rows, gaps = [], {}
    for agents, rounds in found.items():
        gaps[agents], pulls = Spread.of(gap for gap, _ in rounds), Spread.of(took for _, took in rounds)
        rows.append([str(agents), str(options.rounds), pulls.text(".1f"), gaps[agents].text()])
    heads = ["agents", "restarts", "pull in progress, s", "without a listener at most, s"]
    fewest = min(found)
    title = f"without a listener in a restart with {fewest} agents, median of the longest, s"
    bars = [Bar(title, gaps[fewest].median, LIMIT, least=False)]
    raw = [{"agents": agents, "gap": gap, "pull": took} for agents, rounds in found.items() for gap, took in rounds]
    publish("restart", machine(), table(heads, rows), bars, raw, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
