"""The time a new agent waits for its registry.

From "the cloud lists it, and its sshd answers" to "a manifest and a blob have come through localhost:5000", with real
parts: sshd in network namespaces, docker-registry, `tunnelmgr run` as a user runs it, and an EC2 and SQS API on
loopback. The host key is on the console from the beginning; without evidence nothing would be dialled. Single agents
appear at a random moment between two polls; several at once appear right after a poll, the worst case for polling.

Run as root: `python benchmarks/time_to_ready.py [--quick] [--json FILE]`.
"""

import argparse
import http.client
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.agents import LabAgent
from lab.controller import LabController
from lab.ec2 import Ec2Service, host_key_console
from lab.images import make_image, skopeo_copy
from lab.network import Lab

PATIENCE = 120.0
"""Seconds after which a round has failed."""
PULLERS = 8
"""Threads that try to pull; more would compete with the other processes for the CPU."""
QUEUE = "changes"
PHASES = random.Random(1)  # noqa: S311 - the same arrivals in each run


@dataclass(frozen=True)
class Mode:
    """The way in which the controller learns of new agents."""

    name: str
    poll: int
    events: bool


MODES = (
    Mode("events, poll 15 s", 15, events=True),
    Mode("poll 2 s", 2, events=False),
    Mode("poll 15 s", 15, events=False),
)


@dataclass(frozen=True)
class Figures:
    """Seconds until ready, for one mode and one number of agents at once."""

    mode: str
    at_once: int
    agents: int
    p50: float
    p99: float
    least: float
    most: float


class Site:
    """A registry with an image, a cloud, a controller, and agents that are booted and not yet listed."""

    def __init__(self, stack: ExitStack, folder: Path, agents: int) -> None:
        lab = stack.enter_context(Lab(folder / "lab"))
        self.cloud = stack.enter_context(Ec2Service(lab.controller, 5556, folder / "cloud"))
        stack.callback(lab.registry(lab.controller, folder / "registry").stop)
        self.controller = LabController(lab.controller, folder / "controller", self.cloud.environment)
        layout = make_image(folder / "image", layers=1)
        skopeo_copy(lab.controller, layout, "docker://localhost:5000/team/app:1").check_returncode()
        blobs = (folder / "image" / "layout" / "blobs" / "sha256").iterdir()
        blob = max(blobs, key=lambda file: file.stat().st_size).name
        self.targets = ("/v2/team/app/manifests/1", f"/v2/team/app/blobs/sha256:{blob}")
        self.queue = self.cloud.queue(QUEUE)
        line = self.controller.authorized_keys
        self.agents = [lab.agent(f"a{number}", f"10.77.0.{20 + number}", line) for number in range(agents)]
        self._listed: list[str] = []

    def start(self, mode: Mode) -> None:
        """Start a controller that knows no agent."""
        text = '[[source]]\nname = "ec2"\ntype = "ec2"\nregions = ["eu-west-1"]\ntrust = ["console"]\n'
        text += f'poll = "{mode.poll}s"\nendpoint_url = "{self.cloud.endpoint}"\n'
        text += f'events_queue = "{self.queue}"\n' if mode.events else ""
        self.controller.configure(text, probe_interval="15s")
        self.controller.start()

    def clear(self) -> None:
        """Stop the controller, and clear its state and the cloud's."""
        self.controller.stop(patience=60)
        for instance in self._listed:
            self.cloud.forget(instance)
        self._listed.clear()
        for file in self.controller.folder.glob("state.db*"):
            file.unlink()

    def launch(self, agent: LabAgent, mode: Mode) -> float:
        """Make the cloud list an agent, and return the time."""
        console = host_key_console([agent.host_key])
        instance = self.cloud.launch(agent.ip, {"Name": agent.name}, console=console)
        listed = time.monotonic()
        self._listed.append(instance)
        if mode.events:
            self.cloud.event(QUEUE, instance, "running")
        return listed

    def pulls(self, agent: LabAgent) -> bool:
        """Try to pull the manifest and the blob through the agent's own port."""
        try:
            return all(_got(agent, target) for target in self.targets)
        except (OSError, http.client.HTTPException):
            return False


def _got(agent: LabAgent, target: str) -> bool:
    connection = http.client.HTTPConnection("localhost", 5000, timeout=5)
    connection.sock = agent.connect("127.0.0.1", 5000)
    try:
        accept = "application/vnd.oci.image.manifest.v1+json"
        connection.request("GET", target, headers={"Accept": accept, "Connection": "close"})
        answer = connection.getresponse()
        return len(answer.read()) > 0 and answer.status == http.HTTPStatus.OK
    finally:
        connection.close()


def measure(site: Site, mode: Mode, agents: Sequence[LabAgent]) -> list[float]:
    """Launch these agents at once, and return how many seconds each took to be ready."""
    with ThreadPoolExecutor(PULLERS) as pullers:
        waiting = {agent.name: (agent, site.launch(agent, mode)) for agent in agents}
        took: list[float] = []
        deadline = time.monotonic() + PATIENCE

        def attempt(name: str) -> tuple[str, float | None]:
            ready = site.pulls(waiting[name][0])
            return name, time.monotonic() if ready else None

        while waiting:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{mode.name}: {len(waiting)} agents are not ready after {PATIENCE:g} s")
            for name, ready in list(pullers.map(attempt, list(waiting))):
                if ready is not None:
                    took.append(ready - waiting.pop(name)[1])
            time.sleep(0.01)
    return took


def figures(mode: Mode, at_once: int, took: list[float]) -> Figures:
    """Sum up; a percentile is the nearest value at or above it."""
    ordered = sorted(took)

    def rank(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 3)

    return Figures(mode.name, at_once, len(took), rank(0.5), rank(0.99), rank(1 / len(ordered)), rank(1.0))


def run(site: Site, mode: Mode, rounds: int) -> list[Figures]:
    """Measure a mode one agent at a time, then all agents at once."""
    site.start(mode)
    single: list[float] = []
    for agent in site.agents[:rounds]:
        if not mode.events:
            # The last agent was ready just after a poll; the next one comes at any time between two.
            time.sleep(PHASES.uniform(0, mode.poll))
        single += measure(site, mode, [agent])
    site.clear()
    site.start(mode)
    fleet = measure(site, mode, site.agents)
    site.clear()
    return [figures(mode, 1, single), figures(mode, len(site.agents), fleet)]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=100, help="how many come at once (at most 200)")
    parser.add_argument("--rounds", type=int, default=20, help="how many come one at a time")
    parser.add_argument("--quick", action="store_true", help="8 agents, 3 rounds, and no poll of 15 s: for CI")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    agents, rounds = (8, 3) if options.quick else (min(options.agents, 200), options.rounds)
    modes = MODES[:2] if options.quick else MODES
    found: list[Figures] = []
    print("seconds from listed to pulled        at once   agents      p50      p99      min      max")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="time-to-ready-")))
        folder.chmod(0o755)
        site = Site(stack, folder, max(agents, rounds))
        for mode in modes:
            for line in run(site, mode, rounds):
                found.append(line)
                numbers = f"{line.p50:9.2f}{line.p99:9.2f}{line.least:9.2f}{line.most:9.2f}"
                print(f"{line.mode:36s} {line.at_once:7d} {line.agents:8d}{numbers}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
