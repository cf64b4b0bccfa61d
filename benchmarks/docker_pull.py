"""What `docker pull` takes: through tunnelmgr, through `ssh -R`, and from a registry on the agent itself.

Each agent has a real dockerd with its containerd, and pulls an image that it has no part of. Compared are the gate, the
raw relay, `ssh -R` with its default cipher, and `direct`: docker-registry on the agent's own loopback, with the same
storage. The images: 1 GiB in 8 layers, and 200 MiB in 40; without `--full`, the large one has a quarter of that. Agents
pull alone, and eight at a time, each an eighth of the large image, or with `--full` all of it. All take turns, round by
round. The agents have one half of the cores, and the controller's machine the other: they are different machines.

Measured are the seconds of a pull, those until the last byte of a layer has arrived, and the CPU seconds of the
tunnels' processes and of the agents' sshds. No tunnel can be faster than `direct`, which has neither a path nor an
sshd: on the long path too, its seconds are the client's own part. dockerd unpacks layers while others arrive, which
takes longer than the transfer on a short path.
containerd's `ctr content fetch` does not unpack; it verifies and stores the layers. The engines store images in memory,
because a disk takes longer than the transfer, and still writes while the next one is measured. Needs root, and 3 GiB of
free memory; with `--full`, 20 GiB.

    python benchmarks/docker_pull.py [--rounds 1] [--only near-large,…] [--full] [--json FILE]
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from docker_client import DockerClient
from figures import Bar, Spread, interleaved, publish, table
from fleet import FleetAgent, static_source
from layered_image import LayeredImage
from links import Link, create_link, use_cubic
from tunnels import cpu_of, cpu_of_process, machine, ssh_command

from lab.agents import SSH_PORT, LabAgent
from lab.controller import LabController
from lab.docker import dockerd_on
from lab.network import Lab
from lab.processes import Process, until

PORTS = {"ours-gate": 5000, "ours": 5001, "ssh": 5002, "direct": 5003}
"""Who listens where on each agent."""
FORWARDS = """\
[[forward]]
name = "registry"
listen = ["127.0.0.1:5000"]
target = "127.0.0.1:5000"
[[forward]]
name = "raw"
listen = ["127.0.0.1:5001"]
target = "127.0.0.1:5000"
protocol = "tcp"
"""
CROWD = 8
"""The agents that pull at the same time."""
DOCKERD = ("--storage-driver=overlay2", "--max-concurrent-downloads=3")
"""The driver and the number of concurrent downloads that dockerd has by default; the lab's own are for other tests."""
MEMORY = "/dev/shm"  # noqa: S108 - a file system in memory (`tmpfs(5)`)
CLIENTS = ("docker", "containerd")
FIGURES = ("whole", "last_byte", "cpu", "sshd_cpu")
SMALL = LayeredImage("benchmark/small", 1, 1)
"""What everybody pulls once before the first measurement."""


@dataclass(frozen=True)
class Part:
    """One comparison: the path, the image, and the agents that pull it at once."""

    name: str
    link: Link
    image: LayeredImage
    agents: int


def parts(*, full: bool) -> list[Part]:
    """Return all comparisons, with the whole images if `full`."""
    large = LayeredImage("benchmark/large", 8, 128 if full else 32)
    each = large if full else LayeredImage("benchmark/eighth", 8, 4)
    many = LayeredImage("benchmark/many", 40, 5)
    found = []
    for name, link in (("near", Link(0)), ("far", Link(20))):
        found += [Part(f"{name}-large", link, large, 1), Part(f"{name}-many", link, many, 1)]
        found.append(Part(f"{name}-crowd", link, each, CROWD))
    return found


@contextmanager
def on_half(number: int) -> Iterator[None]:
    """Start processes on one half of the cores, if there are several: 0 for the agents, 1 for the controller."""
    cores = os.sched_getaffinity(0)
    half = sorted(cores)[number :: min(2, len(cores))]
    os.sched_setaffinity(0, half or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class Sample:
    """One measurement, in seconds; `cpu` is that of the tunnels' processes, `sshd_cpu` that of the agents' sshds."""

    part: str
    client: str
    kind: str
    number: int
    whole: float
    last_byte: float
    cpu: float
    sshd_cpu: float


class Site:
    """A controller with its registry, and agents at the end of equal links, each with all tunnels and a dockerd."""

    def __init__(self, lab: Lab, folder: Path, link: Link, agents: int, stack: ExitStack) -> None:
        self._controller = LabController(lab.controller, folder / "controller")
        self._storage = folder / "images"
        self._ssh: list[Process] = []
        self.clients: list[DockerClient] = []
        with on_half(0):
            self._agents = machines = [self._agent(lab, folder, number, stack) for number in range(agents)]
        with on_half(1):
            self._registry = lab.registry(lab.controller, folder / "registry", storage=self._storage)
            use_cubic(lab.controller.name)
            found = []
            for agent in machines:
                address = create_link(link, lab.controller, agent, folder)
                found.append(FleetAgent(agent.name, address, SSH_PORT, agent.host_key))
                self._forward(lab, agent, address, folder)
            self._controller.configure(FORWARDS + static_source(found), probe_interval="15s")
            self._controller.start()
        for member in found:
            self._controller.wait_phase(member.name, "up")

    def push(self, lab: Lab, image: LayeredImage) -> None:
        """Push an image to the registry."""
        image.push(lab.controller, self._registry)

    def pull(self, kind: str, client: str, image: LayeredImage, agents: int) -> tuple[float, float, float, float]:
        """Have agents pull an image at the same time; return the seconds in all, to the last byte, and of both CPUs."""
        pulling = self.clients[:agents]
        reference = f"localhost:{PORTS[kind]}/{image.repository}:1"
        cpu, sshd_cpu, began = self.cpu(kind), self.sshd_cpu(), time.monotonic()
        with ThreadPoolExecutor(agents) as threads:
            last_byte = max(threads.map(lambda one: one.pull(client, reference), pulling))
            whole = time.monotonic() - began
            cpu, sshd_cpu = self.cpu(kind) - cpu, self.sshd_cpu() - sshd_cpu
            list(threads.map(lambda one: one.remove(client, reference), pulling))
        return whole, last_byte - began, cpu, sshd_cpu

    def cpu(self, kind: str) -> float:
        """Return the CPU seconds that all tunnels of a kind have used."""
        if kind == "direct":
            return 0.0
        groups = [one.pid for one in self._ssh] if kind == "ssh" else [os.getpgid(self._controller.pid)]
        return sum(map(cpu_of, groups))

    def sshd_cpu(self) -> float:
        """Return the CPU seconds that the agents' sshds have used."""
        return sum(cpu_of_process(pid) for agent in self._agents for pid, _ in agent.sshd_processes())

    def _agent(self, lab: Lab, folder: Path, number: int, stack: ExitStack) -> LabAgent:
        """Boot an agent with a registry of its own and a dockerd."""
        line = self._controller.authorized_keys.replace('5000"', '*"')
        agent = lab.agent(f"agent-{number}", f"10.77.0.{11 + number}", line, sshd_options=["ClientAliveInterval 15"])
        use_cubic(agent.netns)
        lab.registry(agent.network_only(), folder / f"registry-{number}", PORTS["direct"], storage=self._storage)
        root = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY))
        self.clients.append(DockerClient(stack.enter_context(dockerd_on(agent, *DOCKERD, f"--data-root={root}"))))
        return agent

    def _forward(self, lab: Lab, agent: LabAgent, address: str, folder: Path) -> None:
        key, forward = self._controller.folder / "id_ed25519", f"127.0.0.1:{PORTS['ssh']}:127.0.0.1:5000"
        argv = ssh_command("ssh", key, forward, f"tunnel@{address}")
        self._ssh.append(lab.controller.popen(argv, log=folder / f"ssh-{agent.name}.log"))
        until(lambda: agent.listeners(PORTS["ssh"]), "ssh listens", timeout=20)


class Comparison:
    """One part on its site, and its samples."""

    def __init__(self, part: Part, site: Site) -> None:
        self._part = part
        self._site = site
        self.samples: list[Sample] = []

    def run(self, rounds: int) -> list[Sample]:
        """Measure all clients and kinds in turn."""
        interleaved([(client, kind) for client in CLIENTS for kind in PORTS], rounds, self._one)
        return self.samples

    def _one(self, pair: tuple[str, str], number: int) -> None:
        client, kind = pair
        found = self._site.pull(kind, client, self._part.image, self._part.agents)
        self.samples.append(Sample(self._part.name, client, kind, number, *found))
        print(f"  {self.samples[-1]}", file=sys.stderr)


def run(chosen: Sequence[Part], rounds: int) -> list[Sample]:
    """Measure every part; a site has those of one link."""
    samples: list[Sample] = []
    for link in dict.fromkeys(part.link for part in chosen):
        mine = [part for part in chosen if part.link == link]
        with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab, ExitStack() as stack:
            site = Site(lab, Path(place), link, max(part.agents for part in mine), stack)
            for image in dict.fromkeys([SMALL, *(part.image for part in mine)]):
                site.push(lab, image)
            for client, kind in itertools.product(CLIENTS, PORTS):
                site.pull(kind, client, SMALL, len(site.clients))
            for part in mine:
                samples += Comparison(part, site).run(rounds)
    return samples


# --- the figures ---


def by_client(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Return the samples by part and client."""
    found: dict[tuple[str, str], list[Sample]] = {}
    for one in samples:
        found.setdefault((one.part, one.client), []).append(one)
    return found


def ratio(samples: Sequence[Sample], kind: str, base: str, what: str) -> float | None:
    """Return the median of one kind's figures relative to another's in the same round; None if not measured."""
    bases = {one.number: getattr(one, what) for one in samples if one.kind == base}
    ratios = [getattr(one, what) / bases[one.number] for one in samples if one.kind == kind and one.number in bases]
    return Spread.of(ratios).median if ratios else None


def rows(samples: Sequence[Sample]) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for (part, client), found in by_client(samples).items():
        for kind in dict.fromkeys(one.kind for one in found):
            mine = [one for one in found if one.kind == kind]
            cells = [Spread.of(getattr(one, what) for one in mine).text() for what in FIGURES]
            ratios = [ratio(found, kind, base, "whole") for base in ("direct", "ssh")]
            lines.append([part, client, kind, *cells, *(f"{one:.2f}" if one else "" for one in ratios)])
    return lines


def bars(samples: Sequence[Sample]) -> list[Bar]:
    """Return the bars that were measured: to the registry on the agent on the short path, to `ssh -R` on the long."""
    measured = []
    for (part, client), found in by_client(samples).items():
        base, limit = ("direct", 1.03) if part.startswith("near") else ("ssh", 0.7)
        for what, label in (("whole", "seconds"), ("last_byte", "seconds to the last byte")):
            value = ratio(found, "ours-gate", base, what)
            if value is not None and (client, what) != ("containerd", "last_byte"):
                own = ratio(found, "direct", base, what)
                alone = f" (the client alone: {own:.2f})" if own is not None and base != "direct" else ""
                measured.append(Bar(f"{part}, {client}: {label}, relative to {base}{alone}", value, limit, least=False))
    return measured


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", help="parts, by commas; otherwise all")
    parser.add_argument("--full", action="store_true", help="let each of eight agents pull the whole image")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    known = parts(full=options.full)
    chosen = [part for part in known if options.only is None or part.name in options.only.split(",")]
    samples = run(chosen, options.rounds)
    heads = ["part", "client", "who", "seconds", "to the last byte", "CPU s", "sshd CPU s", "to direct", "to ssh -R"]
    publish("docker_pull", machine(), table(heads, rows(samples)), bars(samples), samples, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
