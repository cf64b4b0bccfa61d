"""Small requests per second through a tunnel: `ssh -R`, autossh, asyncssh's own forwarder, ours without and with gate.

Each tunnel has its own port on one agent with a real sshd, between network namespaces, and leads to the same registry,
which answers with a manifest of a few hundred bytes. The agent keeps its connections and sends the next request as soon
as the last is answered; the tunnels take turns, round by round. Ratios are to `ssh -R` in the same round. Needs root.

    python benchmarks/manifests.py [--rounds 3] [--seconds 0.8] [--json FILE]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from content import push_manifest
from figures import Spread, interleaved, publish, table
from pull_load import load_command
from tunnels import KINDS, TunnelStarter, is_available, machine

from lab.network import Lab
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.ssh.key_files import make_key, public_line

IP, REGISTRY = "10.77.0.11", Endpoint("127.0.0.1", 5000)
CONNECTIONS = (1, 4)


@dataclass(frozen=True)
class Sample:
    """One measurement; CPU in microseconds per request."""

    kind: str
    connections: int
    number: int
    per_second: float
    cpu_us: float


def run(rounds: int, seconds: float) -> list[Sample]:
    """Measure all in turn, after a warm-up round."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        folder = Path(place)
        make_key(folder / "id_ed25519", "benchmark")
        agent = lab.agent("agent", IP, public_line(folder / "id_ed25519"))
        lab.registry(lab.controller, folder / "registry")
        manifest = push_manifest(lab, folder)
        starter = TunnelStarter(lab.controller, agent, folder)
        tunnels = {kind: starter.start(kind, IP, REGISTRY) for kind in KINDS if is_available(kind)}

        def measure(pair: tuple[int, str], number: int) -> None:
            connections, kind = pair
            tunnel = tunnels[kind]
            before = tunnel.cpu
            argv = load_command(tunnel.port, manifest, seconds, connections)
            requests, _, took = json.loads(agent.run(argv, timeout=60, check=True).stdout)
            spent = (tunnel.cpu - before) / requests * 1e6
            samples.append(Sample(kind, connections, number, requests / took, spent))

        interleaved([(connections, kind) for connections in CONNECTIONS for kind in tunnels], rounds + 1, measure)
    return [sample for sample in samples if sample.number]


def rows(samples: Sequence[Sample]) -> list[list[str]]:
    """Return the table's lines."""
    base = {(one.connections, one.number): one for one in samples if one.kind == "ssh"}
    lines = []
    for connections, kind in dict.fromkeys((one.connections, one.kind) for one in samples):
        mine = [one for one in samples if (one.connections, one.kind) == (connections, kind)]
        ratios = [one.per_second / base[connections, one.number].per_second for one in mine]
        lines.append(
            [
                str(connections),
                kind,
                Spread.of(one.per_second for one in mine).text(".0f"),
                Spread.of(ratios).text(),
                Spread.of(one.cpu_us for one in mine).text(".0f"),
            ]
        )
    return lines


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.8, help="of load in each measurement")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    samples = run(options.rounds, options.seconds)
    heads = ["connections", "who", "requests/s", "to ssh -R", "µs CPU for each"]
    publish("manifests", machine(), table(heads, rows(samples)), [], samples, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
