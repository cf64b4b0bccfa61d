"""What a cluster keeps while its members, machines, network and database fail by turns: `make cluster`.

Three members on machines of their own with a registry each, a real PostgreSQL on another one, and agents with OpenSSH's
own sshd, whose listeners are looked at every 20 ms: who listens, and when nobody does. Clients on some agents ask who
answers and pull. The faults come in turns, each turn in a random order that the seed repeats, until the time is over.
The exit status is 1 if something that must hold did not. Needs root and PostgreSQL.

    python benchmarks/cluster.py [--seconds 600] [--seed 1] [--agents 200] [--members 3] [--only FAULT …]
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cluster_faults import FAULTS, Fault
from cluster_verdicts import HEADS, Occurrence, figures, verdicts
from figures import table
from tunnels import machine
from watched_cluster import ASKING, BLOB, PULLING, RATE, WatchedCluster

from lab.controller import LabController
from lab.network import Lab
from lab.postgres import Postgres
from lab.processes import LabError

PAUSE = 1.5 * BLOB / RATE
"""Seconds between two faults, in which the pulls that were under way in the first one end."""


def run(site: WatchedCluster, faults: Sequence[Fault], seconds: float, chance: random.Random) -> list[Occurrence]:
    """Cause faults by turns, until the time is over or something stays broken."""
    occurrences: list[Occurrence] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for fault in chance.sample(faults, len(faults)):
            if time.monotonic() >= deadline:
                break
            occurrences.append(cause(site, fault, victim(site, chance)))
            print(f"  {describe(site, occurrences[-1])}", file=sys.stderr, flush=True)
            if occurrences[-1].problem:
                return occurrences
            time.sleep(PAUSE)
    return occurrences


def victim(site: WatchedCluster, chance: random.Random) -> LabController:
    """Return one of the members that hold enough agents to be missed."""
    held = {member: site.held(member) for member in site.members}
    return chance.choice([member for member in site.members if 2 * len(held) * held[member] >= len(site.fleet)])


def cause(site: WatchedCluster, fault: Fault, member: LabController) -> Occurrence:
    """Cause a fault, and wait until every agent is served again."""
    began, problem = time.monotonic(), ""
    try:
        fault.cause(site, member)
        site.settle()
    except LabError as failed:
        problem = str(failed)
    return Occurrence(fault, began, time.monotonic(), problem)


def describe(site: WatchedCluster, one: Occurrence) -> str:
    """Return a line about a fault that was caused."""
    gaps = site.history().gaps(one.began, one.ended)
    longest = max((gap.seconds for gap in gaps), default=0.0)
    text = f"{one.fault.name}: {one.ended - one.began:.0f} s, {len(gaps)} gaps, the longest {longest:.3f} s"
    return f"{text}; {one.problem}" if one.problem else text


def main() -> int:
    """Run the faults, print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="time for the faults; the last one may take longer"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--slack", type=float, default=1.0, help="factor of the bounds, for a machine that is busy")
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS], metavar="FAULT")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    with (
        tempfile.TemporaryDirectory() as place,
        tempfile.TemporaryDirectory(prefix="postgres-") as data,
        Lab(Path(place) / "lab") as lab,
    ):
        Path(data).chmod(0o755)
        with Postgres(Path(data) / "server", lab.machine("database", "10.77.0.9")) as database:
            site = WatchedCluster(lab, database, Path(place), options.agents, options.members)
            site.start()
            before = site.evidence()
            occurrences = run(site, faults, options.seconds, random.Random(options.seed))  # noqa: S311 - not a secret
            lines = figures(site, occurrences, options.slack)
            found = [*(line.verdict() for line in lines), *verdicts(site, occurrences, before)]
            site.cluster.kill()
    print(f"cluster: seed {options.seed}, {machine()}\n\n{table(HEADS, [line.row() for line in lines])}\n")
    print(*found, sep="\n")
    print(
        f"longest time between two looks: {site.watch.longest:.3f} s; clients ask on {ASKING}, pull on {PULLING} agents"
    )
    return 0 if all(verdict.holds for verdict in found) else 1


if __name__ == "__main__":
    sys.exit(main())
