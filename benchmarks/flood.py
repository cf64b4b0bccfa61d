"""The effect of agents that flood on another agent: on its small requests, on its audit entries, and on the disk.

One agent runs a program that sends requests without waiting for responses, on 4, 64 and 128 channels at once: requests
that are refused, `/v2/`, manifests that do not exist, the well-known path, bodies in chunks of one byte, the catalog.
Then 12, 32 and 100 agents flood their SSH connections with IGNORE messages. Another agent requests a small manifest
thirty times per second; rounds with and without a flood alternate. Real agents have machines of their own, so
here the flooding agents' processes run at the lowest priority, and those of the agent that measures at a high one: the
controller and the registry share what is left. Needs root.

    python benchmarks/flood.py [--seconds 10] [--kinds refused missing] [--channels 4 128] [--hostile 12] [--json FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from content import push_manifest
from figures import Bar, percentile, publish, table
from fleet import FleetAgent
from flood_client import KINDS
from pull_load import MANIFESTS, MIB, fetch, request
from tunnels import machine

from lab.agents import HIGH_PRIORITY, LOWEST_PRIORITY, LabAgent, set_priority
from lab.controller import LabController
from lab.network import Lab
from lab.processes import until

PAUSE = 0.03
CHANNELS = (4, 64, 128)
USUAL = ("refused", "base", "missing", "well-known", "chunks-1", "catalog")
HOSTILE = (12, 32, 100)
FIRST_PORT = 20_000
SOON = 20.0
"""Milliseconds under which a small request is fast enough, independent of its time without a flood."""
GROWTH = 100_000
"""Bytes per second by which the log and the audit log together may grow."""
CONFIGURATION = """
[[group]]
name = "builders"
pull = ["**"]
push = ["team/*"]

[[source]]
name = "office"
type = "static"
group = "builders"
trust = ["pinned"]
"""


@dataclass(frozen=True)
class Round:
    """One round: the kind of flood, the milliseconds of the other agent's requests, and the bytes written."""

    kind: str
    channels: int
    milliseconds: tuple[float, ...]
    growth: float
    unaudited: int
    sent: int

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return percentile(self.milliseconds, 0.99)


class Site:
    """Two agents, a registry and a daemon with an audit log that must be written."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._controller = LabController(lab.controller, folder / "controller")
        self._audit = self._controller.folder / "audit.jsonl"
        lab.registry(lab.controller, folder / "registry")
        self._manifest = push_manifest(lab, folder)
        line = self._controller.authorized_keys
        self._good, self._bad = (
            lab.agent(name, ip, line) for name, ip in (("good", "10.77.0.11"), ("bad", "10.77.0.12"))
        )
        members = [FleetAgent.of(agent).toml for agent in (self._good, self._bad)]
        self._controller.configure(CONFIGURATION + "".join(members), probe_interval="15s")
        head, tail = self._controller.file.read_text().split("\n[ssh]", 1)
        audit = f'audit = "{self._audit}"\naudit_required = true\n'
        self._controller.file.write_text(f"{head}{audit}\n[ssh]{tail}")
        self._controller.start()
        for agent in (self._good, self._bad):
            self._controller.wait_phase(agent.name, "up")
        self._bad.set_priority(LOWEST_PRIORITY)
        self._good.set_priority(HIGH_PRIORITY)
        set_priority(os.getpid(), HIGH_PRIORITY)

    def round(self, kind: str, channels: int, seconds: float) -> Round:
        """Request a manifest repeatedly while the other agent floods, or does nothing."""
        load = None
        if channels:
            script = str(Path(__file__).with_name("flood_client.py"))
            argv = [sys.executable, script, "5000", kind, str(channels), str(seconds + 1)]
            load = self._bad.popen(argv, log=self._controller.folder / "flood.log")
            set_priority(load.pid, LOWEST_PRIORITY)
            time.sleep(0.5)
        written = self._written()
        began = time.monotonic()
        found = request_times(self._good, self._manifest, seconds)
        growth = (self._written() - written) / (time.monotonic() - began)
        sent = 0
        if load is not None:
            load.wait(60)
            lines = (self._controller.folder / "flood.log").read_text().splitlines()
            sent = json.loads(lines[-1])[0]
            self._forget_flood()
        return Round(kind, channels, found, growth, len(found) - self._audited_pulls(len(found)), sent)

    def hostile(self, count: int, seconds: float) -> Round:
        """Request a manifest repeatedly while hostile agents flood their connections with IGNORE messages."""
        folder = self._controller.folder / f"hostile-{count}"
        keys = host_keys(folder, count)
        argv = [
            sys.executable,
            str(Path(__file__).with_name("hostile_agents.py")),
            str(count),
            str(FIRST_PORT),
            str(folder),
        ]
        load = self._bad.popen(argv, log=folder / "log")
        until(lambda: "ready" in (folder / "log").read_text(), "the hostile agents listen", timeout=30)
        set_priority(load.pid, LOWEST_PRIORITY)
        members = [FleetAgent(f"hostile-{at}", self._bad.ip, FIRST_PORT + at, key).toml for at, key in enumerate(keys)]
        before = self._controller.file.read_text()
        self._controller.file.write_text(before + "".join(members))
        try:
            self._controller.client.reload()
            until(lambda: self._up() >= count + 2, "the hostile agents are up", timeout=60)
            time.sleep(2)  # the flood begins a second after the first probe
            written, began = self._written(), time.monotonic()
            found = request_times(self._good, self._manifest, seconds)
            growth = (self._written() - written) / (time.monotonic() - began)
            up = self._up()
        finally:
            load.end()
            self._controller.file.write_text(before)
            self._controller.client.reload()
        unaudited = len(found) - self._audited_pulls(len(found))
        return Round(f"ignores, {up - 2} still up", count, found, growth, unaudited, 0)

    def _up(self) -> int:
        return int(self._controller.client.status()["up"])

    def _forget_flood(self) -> None:
        """Drop the data that the flooding agent's sshd buffers: 16 MiB per channel (OpenSSH's CHAN_INPUT_MAX)."""
        self._bad.restart_sshd()
        self._controller.wait(self._bad.name, lambda agent: agent["phase"] != "up", "the flooded tunnel ends", 30)
        self._controller.wait_phase(self._bad.name, "up", 60)
        self._bad.set_priority(LOWEST_PRIORITY)

    def _written(self) -> int:
        return self._controller.log_file.stat().st_size + self._audit.stat().st_size

    def _audited_pulls(self, wanted: int) -> int:
        """Wait for the good agent's entries of this round, and count the requests in them."""
        deadline = time.monotonic() + 15
        while True:
            counted = 0
            for line in self._audit.read_text().splitlines():
                entry = json.loads(line)
                if entry.get("agent") == "static:good" and entry["code"] == "request-allowed":
                    counted += entry.get("count", 1)
            if counted >= self._before + wanted or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        found, self._before = counted - self._before, counted
        return min(wanted, found)

    _before = 0

    @property
    def audit(self) -> dict[str, object]:
        """The health of the audit log, from `status`."""
        return dict(self._controller.client.status()["audit"])


def host_keys(folder: Path, count: int) -> list[str]:
    """Make `count` host keys in a folder; return their public halves."""
    folder.mkdir()
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(count)]
    for number, key in enumerate(keys):
        key.write_private_key(folder / str(number))
    return [" ".join(key.export_public_key().decode().split()[:2]) for key in keys]


def request_times(agent: LabAgent, manifest: str, seconds: float) -> tuple[float, ...]:
    """Request a manifest repeatedly on one connection; return the milliseconds of each request."""
    wire, room, found = request(manifest, MANIFESTS), memoryview(bytearray(MIB)), []
    with agent.connect("127.0.0.1", 5000, timeout=30) as connection:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            began = time.perf_counter()
            fetch(connection, wire, room)
            found.append((time.perf_counter() - began) * 1000)
            time.sleep(PAUSE)
    return tuple(found)


def rows(rounds: Sequence[Round]) -> list[list[str]]:
    """Return the table's lines."""
    return [
        [
            one.kind,
            str(one.channels),
            str(len(one.milliseconds)),
            f"{percentile(one.milliseconds, 0.5):.1f}",
            f"{one.p99:.1f}",
            f"{max(one.milliseconds):.1f}",
            f"{one.growth / 1000:.1f}",
            str(one.unaudited),
            f"{one.sent / 1e6:.1f}",
        ]
        for one in rounds
    ]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=USUAL)
    parser.add_argument("--channels", nargs="+", type=int, default=CHANNELS)
    parser.add_argument("--hostile", nargs="*", type=int, default=HOSTILE, help="agents that flood with IGNOREs")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        site = Site(lab, Path(place))
        site.round("nothing", 0, 1.0)  # to warm up
        for kind in options.kinds:
            rounds.append(site.round("nothing", 0, options.seconds))
            rounds += [site.round(kind, channels, options.seconds) for channels in options.channels]
        rounds.append(site.round("nothing", 0, options.seconds))
        rounds += [site.hostile(count, options.seconds) for count in options.hostile]
        audit = site.audit
    quiet = percentile([one.p99 for one in rounds if not one.channels], 0.5)
    loud = [one for one in rounds if one.channels]
    bars = [
        Bar("the other agent's worst p99, ms", max(one.p99 for one in loud), max(SOON, 2 * quiet), least=False),
        Bar("log and audit, bytes/s", max(one.growth for one in loud), GROWTH, least=False),
        Bar("the other agent's requests without an entry", sum(one.unaudited for one in rounds), 0, least=False),
        Bar("audit entries lost", float(str(audit["lost"])), 0, least=False),
    ]
    heads = [
        "flood",
        "channels",
        "requests",
        "p50, ms",
        "p99, ms",
        "most, ms",
        "written, kB/s",
        "unaudited",
        "flood, MB",
    ]
    publish("flood", f"{machine()}; audit {audit}", table(heads, rows(rounds)), bars, rounds, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
