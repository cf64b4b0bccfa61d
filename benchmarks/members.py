"""One or two controllers on one machine, to see if two members of a cluster use more of its cores.

Compared are one controller with its state in a file, one member of a cluster, and two members on the same machine, with
a real PostgreSQL, one docker-registry, and agents with OpenSSH's own sshd. Everything shares the same cores: database,
registry, sshd and clients too, so the machine's CPU time is stated. Measured are the time until all of many agents that
appear at once are up, and the speed of pulls by one agent and by four, half of them held by each of two members. Ratios
are to the one controller, in the same round. Needs root and PostgreSQL.

    python benchmarks/members.py [--agents 200,500] [--rounds 3] [--json FILE]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Final

from content import push
from figures import Bar, Spread, interleaved, publish, table
from fleet import FleetAgent, count_listening, start_fleet, static_source
from pull_load import MIB, load_command
from storm import busy, moment_of
from tunnels import machine

from lab.agents import LabAgent
from lab.cluster import LabCluster, living
from lab.controller import LabController
from lab.network import Lab
from lab.postgres import Postgres
from lab.processes import until
from tunnelmgr.core.ownership import Member, best_member

COUNTS: Final = {"one controller": 0, "one member": 1, "two members": 2}
"""The setups, with their numbers of members; without one, the state is in a file."""
BASE: Final = "one controller"
PATIENCE: Final = 180.0
PULLING: Final = (1, 4)
"""Agents that pull at a time, each on one connection."""
PULL_SECONDS: Final = 3.0
BLOB_MIB: Final = 64
PROBES: Final = "15s"
SLOWER: Final = 1.3
"""The bar for the time until all are up: a database costs CPU time."""
IDLE_SECONDS: Final = 3.0
IDLE_SHARE: Final = 0.1
"""The share of the cores' time that idle controllers and their database may use."""


@dataclass(frozen=True)
class Storm:
    """Agents that appeared at once: the seconds until all were up, and the CPU seconds of the whole machine."""

    who: str
    agents: int
    number: int
    all: float
    machine_cpu: float


@dataclass(frozen=True)
class Pull:
    """Agents that pulled at the same time, each on one connection."""

    who: str
    agents: int
    number: int
    mb_per_s: float
    machine_cpu_s_per_gib: float


Sample = Storm | Pull


class Site:
    """The machine of the controllers with its registry, and the login key that all controllers use."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.registry = lab.registry(lab.controller, folder / "registry")
        self._owner = LabController(lab.controller, folder / "owner")
        self._started = 0

    @property
    def authorized_keys(self) -> str:
        """The line of authorized_keys that agents need."""
        return self._owner.authorized_keys

    @contextmanager
    def running(self, who: str, sections: str) -> Iterator[list[LabController]]:
        """Start the controllers of a setup with this configuration and without any state, and kill them at the end."""
        self._started += 1
        folder = self.folder / f"setup-{self._started}"
        if not COUNTS[who]:
            controller = LabController(self.lab.controller, folder)
            with self._started_with_key([controller]):
                controller.configure(sections, probe_interval=PROBES)
                controller.start()
                yield [controller]
            return
        with tempfile.TemporaryDirectory(prefix="postgres-") as data:
            Path(data).chmod(0o755)
            with Postgres(Path(data) / "server") as database:
                cluster = LabCluster([self.lab.controller] * COUNTS[who], database.url, folder)
                with self._started_with_key(cluster.members):
                    cluster.configure(sections, probe_interval=PROBES)
                    cluster.start()
                    for member in cluster.members:
                        until(lambda one=member: len(living(one)) == COUNTS[who], "all are members", timeout=PATIENCE)
                    yield cluster.members

    @contextmanager
    def _started_with_key(self, controllers: Sequence[LabController]) -> Iterator[None]:
        for controller in controllers:
            shutil.copy(self._owner.folder / "id_ed25519", controller.folder / "id_ed25519")
        try:
            yield
        finally:
            for controller in controllers:
                if controller.is_running:
                    controller.kill()


def wait_until_up(controllers: Sequence[LabController], count: int) -> None:
    """Wait until all agents are up, by the word of each controller, which knows the agents of the others too."""
    for controller in controllers:
        until(lambda one=controller: one.client.status()["up"] == count, "all are up", timeout=PATIENCE, pause=0.2)


def wait_until_idle(patience: float) -> None:
    """Wait until the machine's cores have been idle for `IDLE_SECONDS`, at most for `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = busy()
        time.sleep(IDLE_SECONDS)
        if busy() - before < IDLE_SHARE * IDLE_SECONDS * (os.cpu_count() or 1):
            return


# --- agents that appear at once ---


class Storms:
    """A fleet, of which the first agents appear at once."""

    def __init__(self, site: Site, most: int, quiet: float) -> None:
        self._site = site
        self._quiet = quiet
        self._agent: LabAgent = site.lab.agent("fleet", "10.77.0.11", site.authorized_keys)
        self._fleet: list[FleetAgent] = start_fleet(self._agent, most, site.folder / "fleet")
        self.samples: list[Storm] = []

    def measure(self, one: tuple[int, str], number: int) -> None:
        """Start the controllers without agents, give all of them the agents, and wait until these are up."""
        count, who = one
        with self._site.running(who, static_source([])) as controllers:
            for controller in controllers:
                text = controller.file.read_text().replace(static_source([]), static_source(self._fleet[:count]))
                controller.file.write_text(text)
            wait_until_idle(self._quiet)
            whole, began = busy(), time.time()
            for controller in controllers:
                controller.client.reload()
            wait_until_up(controllers, count)
            whole = busy() - whole
            storm = Storm(who, count, number, self._last_up(controllers, began, count) - began, whole)
        self.samples.append(storm)
        print(f"  {storm}", file=sys.stderr)
        until(lambda: not count_listening(self._agent, count), "all are gone", timeout=PATIENCE, pause=0.5)

    @staticmethod
    def _last_up(controllers: Sequence[LabController], began: float, count: int) -> float:
        ups: dict[str, float] = {}
        for controller in controllers:
            for line in map(json.loads, controller.log().splitlines()):
                if line["event"] == "phase changed" and line["phase"] == "up" and moment_of(line) >= began:
                    ups.setdefault(line["agent"], moment_of(line))
        if len(ups) != count:
            raise SystemExit(f"{len(ups)} of {count} agents came up")
        return max(ups.values())


# --- pulls ---


class Pulls:
    """Agents for each setup, all of which run at the same time and pull in turn."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._target = push(site.lab, site.registry.url, BLOB_MIB * MIB)
        self._agents: dict[str, list[LabAgent]] = {}
        for who in COUNTS:
            names = balanced_names(who.replace(" ", "-"), max(PULLING))
            first = 20 + 10 * len(self._agents)
            self._agents[who] = [
                site.lab.agent(name, f"10.77.0.{first + number}", site.authorized_keys)
                for number, name in enumerate(names)
            ]
        self.samples: list[Pull] = []

    @contextmanager
    def running(self, who: str) -> Iterator[None]:
        """Run a setup with its agents; two members hold half of the agents each."""
        agents = self._agents[who]
        with self._site.running(who, static_source([FleetAgent.of(agent) for agent in agents])) as controllers:
            wait_until_up(controllers, len(agents))
            if len(controllers) > 1:
                until(
                    lambda: not controllers[0].client.rebalance()["offered"],
                    "all are spread",
                    timeout=PATIENCE,
                    pause=0.5,
                )
                until(lambda: shares(controllers[0]) == [2, 2], "each has its half", timeout=PATIENCE, pause=0.2)
                wait_until_up(controllers, len(agents))
            yield

    def measure(self, one: tuple[int, str], number: int) -> None:
        """Let the first agents of a setup pull at the same time; round 0 warms up and is dropped."""
        count, who = one
        before = busy()
        argv = load_command(5000, self._target, PULL_SECONDS, 1)
        pulls = [agent.popen(argv, stdout=PIPE) for agent in self._agents[who][:count]]
        found = [json.loads(pull.communicate(timeout=PATIENCE)[0]) for pull in pulls]
        spent = busy() - before
        octets = sum(received for _, received, _ in found)
        speed = sum(received / took for _, received, took in found) / 1e6
        if number:
            self.samples.append(Pull(who, count, number, speed, spent / (octets / 1024**3)))


def balanced_names(prefix: str, count: int) -> list[str]:
    """Return names of agents that two members of equal capacity hold in turn."""
    members = [Member("member-0"), Member("member-1")]
    names: dict[str, list[str]] = {member.name: [] for member in members}
    number = 0
    while min(map(len, names.values())) < count // 2:
        name = f"{prefix}-{number}"
        names[best_member(f"static:{name}", "", members) or ""].append(name)
        number += 1
    pairs = zip(*(names[member.name][: count // 2] for member in members), strict=True)
    return [name for pair in pairs for name in pair]


def shares(member: LabController) -> list[int]:
    """Return how many agents each member holds."""
    return [one["agents"] for one in member.client.status()["cluster"]["members"]]


# --- the figures ---


def ratios(samples: Sequence[Sample], who: str, agents: int, field: str) -> list[float]:
    """Return a figure relative to that of one controller, round by round."""
    found = {(one.who, one.number): float(getattr(one, field)) for one in samples if one.agents == agents}
    numbers = sorted({number for _, number in found})
    return [found[who, number] / found[BASE, number] for number in numbers]


def rows(samples: Sequence[Sample], figure: str, cost: str, cost_scale: float = 1.0) -> list[list[str]]:
    """Return the lines of one table: the figure, its ratio to one controller, and the machine's CPU time."""
    lines = []
    for agents in sorted({one.agents for one in samples}):
        for who in COUNTS:
            mine = [one for one in samples if (one.who, one.agents) == (who, agents)]
            form = ".1f" if figure == "all" else ".0f"
            lines.append(
                [
                    str(agents),
                    who,
                    Spread.of(float(getattr(one, figure)) for one in mine).text(form),
                    Spread.of(ratios(samples, who, agents, figure)).text(),
                    Spread.of(float(getattr(one, cost)) * cost_scale for one in mine).text(".1f"),
                ]
            )
    return lines


def run(lab: Lab, folder: Path, counts: Sequence[int], rounds: int, quiet: float) -> tuple[list[Storm], list[Pull]]:
    """Measure all storms, and then all pulls."""
    site = Site(lab, folder)
    storms = Storms(site, max(counts), quiet)
    interleaved([(count, who) for count in counts for who in COUNTS], rounds, storms.measure)
    pulls = Pulls(site)
    first, second, third = COUNTS
    with pulls.running(first), pulls.running(second), pulls.running(third):
        interleaved([(count, who) for count in PULLING for who in COUNTS], 4 * rounds + 1, pulls.measure)
    return storms.samples, pulls.samples


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", default="200,500", help="agents that appear at once, by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quiet", type=float, default=0.0, help="seconds to wait before each storm until nothing else uses the cores"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    counts = [int(count) for count in options.agents.split(",")]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        storms, pulls = run(lab, Path(place), counts, options.rounds, options.quiet)
    two, most = "two members", max(counts)
    bars = [
        Bar(
            f"time for {most} agents, {who} to one controller",
            Spread.of(ratios(storms, who, most, "all")).median,
            SLOWER,
            least=False,
        )
        for who in COUNTS
        if who != BASE
    ]
    bars.append(Bar("speed of four agents, two members", Spread.of(ratios(pulls, two, 4, "mb_per_s")).median, 0.9))
    heads = ["agents at once", "who", "all up, s", "to one controller", "machine's CPU over its cores, s"]
    text = table(heads, rows(storms, "all", "machine_cpu", 1 / (os.cpu_count() or 1)))
    heads = ["agents that pull", "who", "MB/s", "to one controller", "machine's CPU s/GiB"]
    text += "\n\n" + table(heads, rows(pulls, "mb_per_s", "machine_cpu_s_per_gib"))
    data = {"load": load, "storms": [asdict(one) for one in storms], "pulls": [asdict(one) for one in pulls]}
    publish("members", f"{machine()}; load {load:.2f} before the start", text, bars, data, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
