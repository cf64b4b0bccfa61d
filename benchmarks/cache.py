"""A fleet that pulls one image at once, with and without `[cache]`: from S3 with 20 ms to it, and from a local disk.

Real parts: `tunnelmgr run` with a cold cache, agents with sshd in network namespaces, docker-registry, and moto's S3
behind a slow link. Each round pulls in both ways, one after the other, with a new controller and an empty cache. On S3,
the bytes that were read are counted at S3. Needs root.

    python benchmarks/cache.py [--agents 20] [--mib 500] [--layers 5] [--rounds 1] [--json FILE]
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from figures import Bar, Spread, publish, table
from links import Link, create_link
from tunnels import machine

from lab.agents import LabAgent
from lab.controller import LabController
from lab.images import make_image, skopeo_copy
from lab.network import Lab
from lab.processes import until
from lab.registry import Registry
from lab.s3 import S3Service

CLIENT = Path(__file__).with_name("image_client.py")
RTT_MS = 20
CACHED = {True: "with cache", False: "without"}
ALL_KEYS = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass(frozen=True)
class Far:
    """The machine of S3, as the far end of a link."""

    netns: str
    ip: str


@dataclass(frozen=True)
class Sample:
    """One round in one way: seconds until all agents had the image, and what S3 has sent meanwhile."""

    storage: str
    cached: bool
    number: int
    seconds: float
    s3_requests: int = 0
    s3_bytes: int = 0


class Site:
    """A controller's machine with agents, and the registries on S3 and on the disk with one image each."""

    def __init__(self, lab: Lab, folder: Path, agents: int, mib: int, layers: int) -> None:
        self.lab, self.folder = lab, folder
        self.s3 = S3Service(storage := lab.machine("storage", "10.77.0.5"), 9000, folder / "s3").start()
        user = self.s3.create("images", {"registry": ALL_KEYS})["registry"]
        far = create_link(Link(RTT_MS), lab.controller, Far(storage.name, storage.ip), folder)
        user = replace(user, endpoint=f"http://{far}:9000")
        self.registries = {
            "S3": Registry(lab.controller, folder / "on-s3", port=5001, storage=user).start(),
            "disk": Registry(lab.controller, folder / "on-disk", port=5002).start(),
        }
        image = make_image(folder / "image", layers=layers, kib_per_layer=mib * 1024 // layers)
        for registry in self.registries.values():
            where = f"docker://localhost:{registry.port}/team/app:1"
            skopeo_copy(lab.controller, image, where, timeout=600).check_returncode()
        self.controller = LabController(lab.controller, folder / "controller")
        key = self.controller.authorized_keys
        self.agents = [lab.agent(f"agent-{number}", f"10.77.0.{number + 11}", key) for number in range(agents)]

    @contextmanager
    def running(self, registry: Registry, *, cached: bool) -> Iterator[None]:
        """Run a controller whose agents pull from this registry, until all are up and longer."""
        controller = self.controller
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        text = f'\n[cache]\npath = "{cache}"\nmin_free = "1GiB"\n' if cached else ""
        text += f'\n[[forward]]\nname = "registry"\nlisten = ["127.0.0.1:5000"]\ntarget = "127.0.0.1:{registry.port}"\n'
        controller.configure(text + source(self.agents), probe_interval="15s")
        controller.start()
        try:
            until(lambda: controller.client.status()["up"] == len(self.agents), "all agents are up", timeout=60)
            yield
        finally:
            controller.stop()

    def pull(self) -> float:
        """Have all agents pull at once; return the seconds until the last has the image."""
        started = time.monotonic()
        with ThreadPoolExecutor(len(self.agents)) as pool:
            list(pool.map(pull_image, self.agents))
        return time.monotonic() - started

    def measure(self, storage: str, number: int, *, cached: bool) -> Sample:
        """Measure one way."""
        with self.running(self.registries[storage], cached=cached):
            before = self.s3.reads()
            seconds = self.pull()
            after = self.s3.reads()
        requests, octets = (after[key] - before[key] for key in ("requests", "bytes"))
        return Sample(storage, cached, number, seconds, requests, octets)


def source(agents: Sequence[LabAgent]) -> str:
    """Return a static source with the agents."""
    text = '\n[[source]]\nname = "fleet"\ntype = "static"\ngroup = "ci"\npoll = "1s"\n'
    for agent in agents:
        text += f'[[source.agent]]\nname = "{agent.name}"\naddress = "{agent.ip}"\nhost_key = "{agent.host_key}"\n'
    return text


def pull_image(agent: LabAgent) -> None:
    """Pull the image on one agent."""
    argv = [sys.executable, str(CLIENT), "5000", "team/app", "1"]
    agent.run(argv, timeout=900, check=True)


def run(agents: int, mib: int, layers: int, rounds: int) -> list[Sample]:
    """Measure every way in turn; the order changes in each round."""
    samples = []
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place), agents, mib, layers)
        for number in range(rounds):
            for storage in site.registries:
                samples += [
                    site.measure(storage, number, cached=cached)
                    for cached in ((True, False), (False, True))[number % 2]
                ]
    return samples


def of(samples: Sequence[Sample], storage: str, *, cached: bool) -> list[Sample]:
    """Return the samples of one way, by round."""
    return [one for one in samples if (one.storage, one.cached) == (storage, cached)]


def rows(samples: Sequence[Sample], octets: int) -> list[list[str]]:
    """Return the table's lines; `octets` is the size of the image."""
    return [
        [
            storage,
            CACHED[cached],
            Spread.of(one.seconds for one in found).text(".1f"),
            Spread.of(one.s3_bytes / octets for one in found).text() if storage == "S3" else "",
            Spread.of(one.s3_requests for one in found).text(".0f") if storage == "S3" else "",
        ]
        for storage in ("S3", "disk")
        for cached in (False, True)
        for found in [of(samples, storage, cached=cached)]
    ]


def ratio(samples: Sequence[Sample], storage: str) -> float:
    """Return the median of the rounds' ratios of the time with the cache to that without."""
    pairs = zip(of(samples, storage, cached=True), of(samples, storage, cached=False), strict=True)
    return Spread.of(with_cache.seconds / without.seconds for with_cache, without in pairs).median


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--mib", type=int, default=500, help="size of the image")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    samples = run(options.agents, options.mib, options.layers, options.rounds)
    octets = options.mib * 2**20
    most = max(one.s3_bytes for one in of(samples, "S3", cached=True)) / octets
    bars = [
        Bar("S3, bytes read to the image's with cache", most, 1.05, least=False),
        Bar("S3, time with cache to without", ratio(samples, "S3"), 1 / 3, least=False),
        Bar("disk, speed with cache to without", 1 / ratio(samples, "disk"), 0.98),
    ]
    heads = ["storage", "way", "seconds for all", "read from S3, in images", "S3 requests"]
    publish("cache", machine(), table(heads, rows(samples, octets)), bars, samples, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
