"""What clients on an agent see if a part between them and the registry is stopped, killed or cut.

Clients pull a blob repeatedly while the same fault occurs repeatedly; the pulls are counted by result, and by whether
they were under way at a fault or not. Needs root.

    python benchmarks/kills.py [--times 5] [--only NAME …] [--json FILE]
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from content import push
from figures import publish, table
from fleet import FleetAgent, static_source
from tunnels import machine

from lab.agents import LabAgent
from lab.controller import LabController
from lab.network import Lab
from lab.processes import Process, until
from lab.registry import Registry

CLIENTS = 4
BLOB = 24 * 1024 * 1024
BACK = 40.0
"""Seconds within which clients pull whole blobs again."""
KINDS = (
    "controller stopped (SIGTERM) and started",
    "controller killed and started",
    "configuration reloaded",
    "registry stopped and started",
    "registry killed and started",
    "agent's sshd killed with its sessions, and started",
    "connection reset",
    "connection cut silently for 2 s",
)


@dataclass(frozen=True)
class Seen:
    """The results of the pulls for one kind of fault."""

    kind: str
    under_way: dict[str, int]
    later: dict[str, int]
    longest: float


class Site:
    """An agent with clients, a daemon and a registry."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._folder = folder
        self._controller = LabController(lab.controller, folder / "controller")
        self._registry: Registry = lab.registry(lab.controller, folder / "registry")
        self._blob = push(lab, self._registry.url, BLOB)
        self._agent: LabAgent = lab.agent("agent", "10.77.0.11", self._controller.authorized_keys)
        self._controller.configure(static_source([FleetAgent.of(self._agent)]), probe_interval="2s")
        self._controller.start()
        self._controller.wait_phase("agent", "up")
        self._logs = [folder / f"client-{number}.log" for number in range(CLIENTS)]

    def cause(self, kind: str, times: int) -> Seen:
        """Cause the fault this many times, and count the pulls."""
        script = str(Path(__file__).with_name("pull_loop.py"))
        for log in self._logs:
            log.unlink(missing_ok=True)
        clients = [self._agent.popen([sys.executable, script, "5000", self._blob], log=log) for log in self._logs]
        moments, longest = [], 0.0
        try:
            for _ in range(times):
                self._wait_for_whole_pulls(time.monotonic())
                time.sleep(random.uniform(1.0, 1.5))  # noqa: S311 - a random moment of a pull
                moments.append(time.monotonic())
                self._acts()[kind]()
                self._wait_for_whole_pulls(moments[-1] + 0.001)
                longest = max(longest, time.monotonic() - moments[-1])
        finally:
            end(clients)
        return count(kind, self._pulls(), moments, longest)

    def _wait_for_whole_pulls(self, since: float) -> None:
        """Wait until each client has pulled a whole blob, starting after `since`."""

        def pulled() -> bool:
            pulls = [[one for one in read(log) if one["began"] >= since] for log in self._logs]
            return all(any(one["saw"] == "whole" for one in mine) for mine in pulls)

        until(pulled, "all clients pull again", timeout=BACK, pause=0.05)

    def _pulls(self) -> list[dict[str, float | str]]:
        return [one for log in self._logs for one in read(log)]

    def _acts(self) -> dict[str, Callable[[], object]]:
        acts = (
            self._stop_controller,
            self._kill_controller,
            self._controller.client.reload,
            self._stop_registry,
            self._kill_registry,
            self._agent.restart_sshd,
            self._agent.faults.reset_connections,
            self._cut,
        )
        return dict(zip(KINDS, acts, strict=True))

    def _stop_controller(self) -> None:
        self._controller.stop()
        self._controller.start()

    def _kill_controller(self) -> None:
        self._controller.kill()
        self._controller.start()

    def _stop_registry(self) -> None:
        self._registry.stop()
        self._registry.start()

    def _kill_registry(self) -> None:
        self._registry.kill()
        self._registry.start()

    def _cut(self) -> None:
        self._agent.faults.cut_connections()
        time.sleep(2)
        self._agent.faults.heal()


def end(clients: Sequence[Process]) -> None:
    """End the clients."""
    for client in clients:
        client.end()


def read(log: Path) -> list[dict[str, float | str]]:
    """Return the pulls that a client has reported."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def count(kind: str, pulls: list[dict[str, float | str]], moments: Sequence[float], longest: float) -> Seen:
    """Count pulls by result."""
    under_way: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for one in pulls:
        across = any(float(one["began"]) <= moment <= float(one["ended"]) for moment in moments)
        (under_way if across else later)[str(one["saw"])] += 1
    return Seen(kind, dict(under_way), dict(later), longest)


def rows(seen: Sequence[Seen]) -> list[list[str]]:
    """Return the table's lines."""
    return [[one.kind, text(one.under_way), text(one.later), f"{one.longest:.1f}"] for one in seen]


def text(counts: dict[str, int]) -> str:
    """Return counts as text."""
    return ", ".join(f"{count} {saw}" for saw, count in sorted(counts.items())) or "none"


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="repetitions of each fault")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place))
        seen = [site.cause(kind, options.times) for kind in options.only]
    heads = ["what happens", "pulls under way then", "all other pulls", "s until all pull again, at most"]
    publish("kills", machine(), table(heads, rows(seen)), [], seen, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
