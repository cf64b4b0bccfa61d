"""The throughput of one tunnel: MB/s and CPU per GiB, compared with `ssh -R`, autossh and asyncssh's own forwarder.

Each tunnel has its own port on one agent with a real sshd, between network namespaces; all pull the same bytes in turn,
round by round, so that other load on the machine affects all of them equally. Each figure is the median of the rounds
with its extremes; ratios are to `ssh -R` with its default cipher, in the same round and over the same link. The source
is a program that sends random bytes from memory, or docker-registry. Needs root.

    python benchmarks/throughput.py [--rounds N] [--only near,registry,far,lossy] [--json FILE]
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from content import push
from figures import Bar, Spread, interleaved, publish, table
from links import Link, create_link, use_cubic
from pull_load import MIB, load_command
from tunnels import KINDS, Tunnel, TunnelStarter, is_available, machine

from lab.network import Lab
from lab.processes import until
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.ssh.key_files import make_key, public_line

IP = "10.77.0.11"
SOURCE, REGISTRY = Endpoint("127.0.0.1", 7000), Endpoint("127.0.0.1", 5000)
MOST = 512
"""The MiB that the source can send."""


@dataclass(frozen=True)
class Part:
    """One comparison: the link, the kinds of tunnels, the MiB per connection by number of connections, and the source.

    All of them take turns, for at least `rounds` rounds and `seconds` seconds: short measurements need many repetitions
    over a longer time, because the machine's speed varies.
    """

    name: str
    line: Link
    kinds: Sequence[str]
    mib: dict[int, int]
    rounds: int = 3
    seconds: float = 0.0
    source: Endpoint = SOURCE


PARTS = [
    Part("near", Link(0), [kind for kind in KINDS if kind != "ours-gate"], {1: 320, 4: 80, 8: 48}, seconds=85),
    Part("registry", Link(0), ["ssh", "ssh-gcm", "ours", "ours-gate"], {1: 256, 8: 48}, seconds=30, source=REGISTRY),
    # Long enough that TCP's slow start does not dominate.
    Part("far", Link(20), ["ssh", "asyncssh-gcm", "ours"], {1: 160, 4: 80}, rounds=2),
    Part("far", Link(80), ["ssh", "ours"], {1: 80, 4: 64}, rounds=2),
    Part("lossy", Link(20, 1000), ["ssh", "ours"], {1: 16, 4: 8}),
]


# --- the source: a file sent by the kernel, which costs almost nothing ---


def source() -> None:
    """Answer every request with as many MiB as its path names; serve until killed."""
    content = os.memfd_create("content")
    os.pwrite(content, os.urandom(MOST * MIB), 0)
    with socket.create_server((SOURCE.host, SOURCE.port), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=send_out, args=(connection, content), daemon=True, name="send").start()


def send_out(connection: socket.socket, content: int) -> None:
    """Answer the requests of one connection."""
    with connection:
        while request := connection.recv(65536):
            octets = int(request.split()[1].rpartition(b"/")[2]) * MIB
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % octets)
            sent = 0
            while sent < octets:
                sent += os.sendfile(connection.fileno(), content, sent, octets - sent)


# --- the run ---


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    part: str
    line: str
    kind: str
    connections: int
    number: int
    mb_per_s: float
    cpu_s_per_gib: float


class Measured:
    """One comparison: its tunnels and their samples."""

    def __init__(self, part: Part, starter: TunnelStarter, address: str, targets: dict[int, str]) -> None:
        self._part = part
        self._agent = starter.agent
        self._targets = targets
        self._tunnels: dict[str, Tunnel] = {
            kind: starter.start(kind, address, part.source) for kind in part.kinds if is_available(kind)
        }
        self.samples: list[Sample] = []

    def run(self, rounds: int | None) -> list[Sample]:
        """Measure, after a warm-up round if the link is fast."""
        least, seconds = (rounds, 0.0) if rounds else (self._part.rounds, self._part.seconds)
        warm = 0 if self._part.line.rtt_ms else 1
        pairs = [(connections, kind) for connections in self._part.mib for kind in self._tunnels]
        interleaved(pairs, least + warm, self._one, seconds)
        return sorted((sample for sample in self.samples if sample.number >= warm), key=lambda one: one.connections)

    def _one(self, pair: tuple[int, str], number: int) -> None:
        connections, kind = pair
        tunnel, mib = self._tunnels[kind], self._part.mib[connections]
        before = tunnel.cpu
        argv = load_command(tunnel.port, self._targets[mib], 0, connections)  # one pull per connection
        _, received, took = json.loads(self._agent.run(argv, timeout=180, check=True).stdout)
        spent = (tunnel.cpu - before) / (connections * mib / 1024)
        speed = received / took / 1e6
        self.samples.append(Sample(self._part.name, str(self._part.line), kind, connections, number, speed, spent))


def run(parts: Sequence[Part], rounds: int | None) -> list[Sample]:
    """Measure every part in turn."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as place, Lab(Path(place)) as lab:
        folder = Path(place)
        make_key(folder / "id_ed25519", "benchmark")
        options = ["MaxSessions 32", "ClientAliveInterval 15"]
        agent = lab.agent("agent", IP, public_line(folder / "id_ed25519"), sshd_options=options)
        for netns in (lab.controller.name, agent.netns):
            use_cubic(netns)
        lab.controller.popen([sys.executable, __file__, "--source"], log=folder / "source.log")
        until(lambda: lab.controller.listeners(SOURCE.port), "the source listens")
        registry = lab.registry(lab.controller, folder / "registry")
        starter = TunnelStarter(lab.controller, agent, folder)
        for part in parts:
            address = create_link(part.line, lab.controller, agent, folder)
            sizes = set(part.mib.values())
            if part.source == REGISTRY:
                targets = {mib: push(lab, registry.url, mib * MIB) for mib in sizes}
            else:
                targets = {mib: f"/{mib}" for mib in sizes}
            samples += Measured(part, starter, address, targets).run(rounds)
            text = ", ".join(f"{kind} {seen.median:.0f}" for kind, seen in speeds(samples, part).items())
            print(f"  {part.name}, {part.line}, MB/s with one connection: {text}", file=sys.stderr)
    return samples


def speeds(samples: Sequence[Sample], part: Part) -> dict[str, Spread]:
    """Return the speed of one connection by kind."""
    found: dict[str, list[float]] = {}
    for one in samples:
        if (one.part, one.line, one.connections) == (part.name, str(part.line), 1):
            found.setdefault(one.kind, []).append(one.mb_per_s)
    return {kind: Spread.of(values) for kind, values in found.items()}


# --- the figures ---


class Samples:
    """The samples by part, link, number of connections and kind."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = {(one.part, one.line, one.connections, one.kind, one.number): one for one in samples}
        self.groups = list(dict.fromkeys((one.part, one.line, one.connections, one.kind) for one in samples))

    def of(self, part: str, line: str, connections: int, kind: str) -> list[Sample]:
        """Return the samples of one group."""
        return [one for key, one in self._samples.items() if key[:4] == (part, line, connections, kind)]

    def ratios(self, group: tuple[str, str, int, str], base: str, what: str = "mb_per_s") -> list[float]:
        """Return the ratio of a group to a base kind, round by round."""
        pairs = [(one, self._samples.get((*group[:3], base, one.number))) for one in self.of(*group)]
        return [getattr(one, what) / getattr(other, what) for one, other in pairs if other and getattr(other, what)]

    def median(self, group: tuple[str, str, int, str], base: str, what: str = "mb_per_s") -> float | None:
        """Return the median of the ratios, or None if they were not measured."""
        ratios = self.ratios(group, base, what)
        return Spread.of(ratios).median if ratios else None


def rows(found: Samples) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for group in found.groups:
        part, line, connections, kind = group
        mine = found.of(*group)
        lines.append(
            [
                f"{line}{', registry' if part == 'registry' else ''}",
                str(connections),
                kind,
                Spread.of(one.mb_per_s for one in mine).text(".0f" if mine[0].mb_per_s > 10 else ".1f"),
                Spread.of(found.ratios(group, "ssh")).text(),
                Spread.of(one.cpu_s_per_gib for one in mine).text(),
                f"{found.median(group, 'ssh', 'cpu_s_per_gib') or 0:.2f}",
            ]
        )
    return lines


AIMS = [
    ("one connection to ssh -R", ("near", "0 ms", 1, "ours"), "ssh", "mb_per_s", 2.0),
    ("one connection to ssh -R with AES-GCM", ("near", "0 ms", 1, "ours"), "ssh-gcm", "mb_per_s", 1.3),
    ("eight connections to ssh -R", ("near", "0 ms", 8, "ours"), "ssh", "mb_per_s", 1.8),
    ("eight connections to ssh -R with AES-GCM", ("near", "0 ms", 8, "ours"), "ssh-gcm", "mb_per_s", 1.2),
    ("CPU per GiB, relative to ssh -R", ("near", "0 ms", 1, "ours"), "ssh", "cpu_s_per_gib", 0.45),
    ("gate to raw, from the registry", ("registry", "0 ms", 1, "ours-gate"), "ours", "mb_per_s", 0.95),
    ("20 ms, one connection", ("far", "20 ms", 1, "ours"), "ssh", "mb_per_s", 1.7),
    ("20 ms, four connections", ("far", "20 ms", 4, "ours"), "ssh", "mb_per_s", 1.9),
    ("80 ms, one connection", ("far", "80 ms", 1, "ours"), "ssh", "mb_per_s", 1.7),
    ("80 ms, four connections", ("far", "80 ms", 4, "ours"), "ssh", "mb_per_s", 1.9),
    ("0.1 % lost at 20 ms, one connection", ("lossy", "20 ms, 0.1 % lost", 1, "ours"), "ssh", "mb_per_s", 8.0),
    ("0.1 % lost at 20 ms, four connections", ("lossy", "20 ms, 0.1 % lost", 4, "ours"), "ssh", "mb_per_s", 8.0),
]


def bars(found: Samples) -> list[Bar]:
    """Return the bars that were measured."""
    met = []
    for what, group, base, field, limit in AIMS:
        value = found.median(group, base, field)
        if value is not None:
            met.append(Bar(what, value, limit, least=field == "mb_per_s"))
    return met


def main() -> int:
    """Run the benchmark, or a part of it; or be the source that it starts."""
    if sys.argv[1:] == ["--source"]:
        source()
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="for all parts; else two and more, as time allows")
    parser.add_argument("--only", default="near,registry,far,lossy", help="parts, by commas")
    parser.add_argument("--json", type=Path, help="write the samples there, too")
    options = parser.parse_args()
    samples = run([part for part in PARTS if part.name in options.only.split(",")], options.rounds)
    found = Samples(samples)
    heads = ["line", "connections", "who", "MB/s", "to ssh -R", "CPU s/GiB", "CPU to ssh -R"]
    publish("throughput", machine(), table(heads, rows(found)), bars(found), samples, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
