"""Several controllers on one PostgreSQL: how long agents are without a listener in a restart, and after a crash.

Agents with OpenSSH's own sshd look at their own socket tables every 20 ms. Measured are: a rolling restart of all
members, in which every agent changes its controller at least once; `kill -9` of each member in turn; and a restart of
the database, in which no tunnel may end. Needs root and PostgreSQL.

No peer does this: `ssh -R` and autossh have no state to share. Two of them for one agent would compete for its port:
the second is refused until the agent's sshd has given up the first, which `ClientAliveInterval` decides.

    python benchmarks/failover.py [--agents 200] [--members 3] [--rounds 1] [--json FILE]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import Bar, percentile, publish, table
from fleet import FleetAgent, count_listening, start_fleet, static_source
from listener_watch import WATCH_INTERVAL, WatchLog
from tunnels import machine

from lab.agents import LabAgent
from lab.cluster import LabCluster
from lab.controller import LabController
from lab.network import Lab
from lab.postgres import Postgres
from lab.processes import until

PLANNED, CRASHED = 0.15, 5.0
"""The bars, in seconds."""
PATIENCE = 120.0


@dataclass(frozen=True)
class Outage:
    """What one event did: the seconds without a listener, one figure for each agent that had any, and of how many."""

    what: str
    gaps: tuple[float, ...]
    agents: int

    def percentile(self, share: float) -> float:
        """Return the seconds over all agents; one without a gap counts as 0."""
        return percentile([0.0] * (self.agents - len(self.gaps)) + list(self.gaps), share)


class Site:
    """The agents, the database, the registry and the members."""

    def __init__(self, lab: Lab, database: Postgres, folder: Path, agents: int, members: int) -> None:
        self.cluster = LabCluster([lab.controller] * members, database.url, folder)
        self.members = self.cluster.members
        lab.registry(lab.controller, folder / "registry")
        self.database = database
        self._agent: LabAgent = lab.agent("fleet", "10.77.0.11", self.cluster.authorized_keys)
        self.fleet: list[FleetAgent] = start_fleet(self._agent, agents, folder / "fleet", watched=True)
        self._watch = WatchLog(folder / "fleet" / "listeners.jsonl")
        self.cluster.configure(static_source(self.fleet), probe_interval="15s")

    def start(self) -> None:
        """Start all members, and wait until every agent has a tunnel."""
        self.cluster.start()
        self.all_listen()

    def all_listen(self) -> None:
        """Wait until every agent has a listener, and its holder says that it is up."""
        count = len(self.fleet)
        until(lambda: count_listening(self._agent, count) == count, "all listen", timeout=PATIENCE, pause=0.2)
        until(lambda: self.held() == count, "all are up", timeout=PATIENCE, pause=0.2)

    def held(self) -> int:
        """Return how many agents are up, by the first member's word."""
        return int(self.members[0].client.status()["up"])

    def shares(self) -> list[int]:
        """Return how many agents each member holds."""
        cluster = self.members[0].client.status()["cluster"]
        return [member["agents"] for member in cluster["members"]]

    def measure(self, what: str, act: Callable[[], object]) -> Outage:
        """Do something, wait until all is well, and return the gaps since."""
        began = time.monotonic()
        act()
        self.all_listen()
        time.sleep(5 * WATCH_INTERVAL)
        total: dict[int, float] = {}
        for gap in self._watch.history().gaps(began - 1, time.monotonic()):
            total[gap.agent] = max(total.get(gap.agent, 0.0), gap.seconds)
        found = Outage(what, tuple(total.values()), len(self.fleet))
        print(f"  {what}: {len(found.gaps)} gaps, the longest {max(found.gaps, default=0):.3f} s", file=sys.stderr)
        return found

    def rolling_restart(self) -> None:
        """Restart one member after the other; a stop hands its agents over."""
        for member in self.members:
            member.stop(PATIENCE)
            self.cluster.start(member)

    def rebalance(self) -> None:
        """Spread the agents over the members, and wait until all offers have been taken."""
        time.sleep(1)  # until every member knows every other
        until(lambda: not self.members[0].client.rebalance()["offered"], "all are spread", timeout=PATIENCE, pause=0.5)
        time.sleep(2)  # the last of them are under way

    def crash(self, member: LabController) -> None:
        """Kill a member; it stays away until its agents are back."""
        member.kill()

    def restart_database(self) -> None:
        """Stop the database as a crash would, and start it again after a while."""
        self.database.stop()
        time.sleep(3)
        self.database.start()
        until(lambda: self.members[0].client.status()["cluster"]["database"]["ok"], "it answers", timeout=PATIENCE)


def rows(outages: Sequence[Outage]) -> list[list[str]]:
    """Return the table's lines."""
    return [
        [
            one.what,
            str(one.agents),
            str(len(one.gaps)),
            f"{one.percentile(0.5):.3f}",
            f"{one.percentile(0.99):.3f}",
            f"{max(one.gaps, default=0.0):.3f}",
        ]
        for one in outages
    ]


def run(site: Site, rounds: int) -> list[Outage]:
    """Run every event `rounds` times."""
    site.start()
    print(f"  shares: {site.shares()}", file=sys.stderr)
    outages = []
    for _ in range(rounds):
        outages.append(site.measure("rolling restart", site.rolling_restart))
        outages.append(site.measure("rebalance", site.rebalance))
        for number, member in enumerate(site.members[1:], start=1):
            outages.append(site.measure(f"kill -9 of member {number}", lambda member=member: site.crash(member)))
            site.cluster.start(member)
            outages.append(site.measure("rebalance", site.rebalance))
        outages.append(site.measure("restart of the database", site.restart_database))
    return outages


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as place,
        tempfile.TemporaryDirectory(prefix="postgres-") as data,
        Lab(Path(place) / "lab") as lab,
    ):
        Path(data).chmod(0o755)
        with Postgres(Path(data) / "server") as database:
            site = Site(lab, database, Path(place), options.agents, options.members)
            outages = run(site, options.rounds)
            site.cluster.kill()
    planned = [one for one in outages if one.what in {"rolling restart", "rebalance"}]
    crashed = [one for one in outages if one.what.startswith("kill")]
    database_gaps = sum(len(one.gaps) for one in outages if one.what == "restart of the database")
    bars = [
        Bar("planned, p99 over all agents, s", max(one.percentile(0.99) for one in planned), PLANNED, least=False),
        Bar("kill -9, p99 over all agents, s", max(one.percentile(0.99) for one in crashed), CRASHED, least=False),
        Bar("agents without a listener while the database restarts", database_gaps, 0, least=False),
    ]
    heads = ["event", "agents", "with a gap", "p50, s", "p99, s", "most, s"]
    data_out = [{"what": one.what, "agents": one.agents, "gaps": one.gaps} for one in outages]
    publish("failover", machine(), table(heads, rows(outages)), bars, data_out, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
