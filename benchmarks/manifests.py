"""Small requests per second through a tunnel: `ssh -R`, autossh, asyncssh's own forwarder, ours without and with gate.

Each tunnel has its own port on one agent with a real sshd, between network namespaces, and leads to the same registry,
which answers with a manifest of a few hundred bytes, asked for by its tag. The gate with a cache is also asked for it
by its digest, as a fleet asks that has pulled it before, and compared with `ssh -R` for the digest. The agent keeps its
connections and sends the next request as soon as the last is answered; the tunnels take turns, round by round. Ratios
are to `ssh -R` in the same round. Needs root.

    python benchmarks/manifests.py [--rounds 3] [--seconds 0.8] [--json FILE]
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from content import push_manifest
from figures import Bar, Spread, interleaved, publish, table
from request_load import request_command
from tunnels import KINDS, TunnelStarter, is_available, machine

from lab.images import digest_of
from lab.network import Lab
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.ssh.key_files import make_key, public_line

IP, REGISTRY = "10.77.0.11", Endpoint("127.0.0.1", 5000)
CONNECTIONS = (1, 4, 16, 64)
BY_TAG = [("tag", kind) for kind in KINDS]
BY_DIGEST = [("digest", kind) for kind in ("ssh", "ours-cache")]
BARS = {("tag", "ours-gate"): 0.95, ("digest", "ours-cache"): 1.5}


@dataclass(frozen=True)
class Sample:
    """One measurement; the 99th percentile of an answer in milliseconds, CPU in microseconds per request."""

    asked_by: str
    kind: str
    connections: int
    number: int
    per_second: float
    p99_ms: float
    cpu_us: float


def run(rounds: int, seconds: float) -> list[Sample]:
    """Measure all in turn, after a warm-up round."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as place, Lab(Path(place) / "lab") as lab:
        folder = Path(place)
        make_key(folder / "id_ed25519", "benchmark")
        agent = lab.agent("agent", IP, public_line(folder / "id_ed25519"))
        lab.registry(lab.controller, folder / "registry")
        tag = push_manifest(lab, folder)
        digest = digest_of(lab.controller, "docker://localhost:5000/team/app:1")
        targets = {"tag": tag, "digest": f"{tag.rpartition('/')[0]}/{digest}"}
        starter = TunnelStarter(lab.controller, agent, folder)
        tunnels = {kind: starter.start(kind, IP, REGISTRY) for kind in (*KINDS, "ours-cache") if is_available(kind)}

        def measure(one: tuple[int, tuple[str, str]], number: int) -> None:
            connections, (asked_by, kind) = one
            tunnel = tunnels[kind]
            before = tunnel.cpu
            argv = request_command(tunnel.port, targets[asked_by], seconds, connections)
            requests, took, p99 = json.loads(agent.run(argv, timeout=60, check=True).stdout)
            spent = (tunnel.cpu - before) / requests * 1e6
            samples.append(Sample(asked_by, kind, connections, number, requests / took, p99, spent))

        ways = [way for way in (*BY_TAG, *BY_DIGEST) if way[1] in tunnels]
        interleaved(list(product(CONNECTIONS, ways)), rounds + 1, measure)
    return [sample for sample in samples if sample.number]


def of(samples: Sequence[Sample], asked_by: str, kind: str, connections: int) -> list[Sample]:
    """Return the samples of one way, by round."""
    wanted = (asked_by, kind, connections)
    return sorted(
        (one for one in samples if (one.asked_by, one.kind, one.connections) == wanted), key=lambda one: one.number
    )


def ratios(samples: Sequence[Sample], asked_by: str, kind: str, connections: int, what: str) -> Spread:
    """Return the spread of the rounds' ratios of a figure to that of `ssh -R`."""
    mine, base = (of(samples, asked_by, who, connections) for who in (kind, "ssh"))
    return Spread.of(getattr(one, what) / getattr(other, what) for one, other in zip(mine, base, strict=True))


def rows(samples: Sequence[Sample]) -> list[list[str]]:
    """Return the table's lines."""
    lines = []
    for connections, (asked_by, kind) in product(CONNECTIONS, (*BY_TAG, *BY_DIGEST)):
        if mine := of(samples, asked_by, kind, connections):
            lines.append(
                [
                    str(connections),
                    asked_by,
                    kind,
                    Spread.of(one.per_second for one in mine).text(".0f"),
                    ratios(samples, asked_by, kind, connections, "per_second").text(),
                    Spread.of(one.p99_ms for one in mine).text(".1f"),
                    Spread.of(one.cpu_us for one in mine).text(".0f"),
                ]
            )
    return lines


def bars(samples: Sequence[Sample]) -> list[Bar]:
    """Return the targets."""
    found = []
    for connections, ((asked_by, kind), least) in product(CONNECTIONS, BARS.items()):
        what = f"by {asked_by}, {connections} connections"
        speed = ratios(samples, asked_by, kind, connections, "per_second").median
        found.append(Bar(f"{what}, requests to ssh -R", speed, least))
        late = ratios(samples, asked_by, kind, connections, "p99_ms").median
        found.append(Bar(f"{what}, p99 to ssh -R", late, 1.0, least=False))
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.8, help="of load in each measurement")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    samples = run(options.rounds, options.seconds)
    heads = ["connections", "by", "who", "requests/s", "to ssh -R", "p99 ms", "µs CPU for each"]
    publish("manifests", machine(), table(heads, rows(samples)), bars(samples), samples, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
