"""The event loop's lag while 5,000 audit entries are written each second, compared with none.

One process, with the product's loop, writes a sealed audit log, and a timer measures by how much the loop is late. In
the third form, another thread also sends each entry to an HTTP endpoint, which is a process of its own. The forms take
turns.

    python benchmarks/audit.py [--seconds 5] [--rounds 5] [--rate 5000] [--json FILE]
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from figures import Bar, Spread, interleaved, percentile, publish, table
from tunnels import machine

from tunnelmgr.config import AuditForwardConfig
from tunnelmgr.core.agent import AgentId
from tunnelmgr.daemon.audit_setup import make_forward
from tunnelmgr.daemon.event_loop import loop_factory
from tunnelmgr.observability.audit_file import ChainSettings
from tunnelmgr.observability.audit_log import AuditLog
from tunnelmgr.observability.audit_seal import SealingKey, SealKey

TICK = 0.002
"""Seconds between two measurements of the lag, and between two groups of entries."""
FORMS = ("no entries", "entries", "entries, forwarded")
COLLECTOR = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Round:
    """One round of one form: the lag in milliseconds, the entries per second, and what was lost or not forwarded."""

    form: str
    p50: float
    p99: float
    most: float
    rate: float
    lost: int
    behind: int


async def one_round(form: str, folder: Path, collector: int, options: argparse.Namespace) -> Round:
    """Measure one form for some seconds."""
    private = Ed25519PrivateKey.generate()
    signer = SealingKey(private, SealKey(private.public_key()).fingerprint)
    file = folder / f"audit-{time.monotonic_ns()}.jsonl"
    log = AuditLog(file, "registry-1", time.time, chain=ChainSettings(signer, interval=1.0))
    await log.start()
    config = AuditForwardConfig(name="collector", url=f"http://127.0.0.1:{collector}/")
    forward = make_forward(file, config) if form == FORMS[2] else None
    if forward:
        forward.start()
    rate = 0 if form == FORMS[0] else options.rate
    lags, noted, began = [], 0, time.monotonic()
    while (now := time.monotonic()) < began + options.seconds:
        while noted < rate * (now - began):
            note(log, noted)
            noted += 1
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        lags.append(1000 * (time.monotonic() - due))
    took = time.monotonic() - began
    log.close()
    if forward:
        forward.stop()
        forward.join(10)
    behind = forward.health(log.written).behind if forward else 0
    return Round(
        form,
        percentile(lags, 0.5),
        percentile(lags, 0.99),
        max(lags),
        log.written / took if rate else 0.0,
        log.lost,
        behind,
    )


def note(log: AuditLog, number: int) -> None:
    """Add an entry as a pull causes it."""
    log.note(
        "request-allowed",
        AgentId(f"ec2:i-{number % 500:017x}"),
        incarnation=f"i-{number % 500:017x}",
        group="ci",
        address="10.0.0.1",
        trust="console",
        key="SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        forward="registry",
        channel=number,
        method="GET",
        action="pull",
        repository="team/app",
        reference=f"sha256:{number:064x}",
        verdict="allow",
        rule="pull **",
        status=200,
        bytes_to_agent=123456,
        bytes_from_agent=321,
        duration_ms=12.5,
    )


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=5000, help="entries per second")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found: list[Round] = []
    server = subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline()) if server.stdout else 0
        with tempfile.TemporaryDirectory() as place, asyncio.Runner(loop_factory=loop_factory()) as runner:

            def measure(form: str, _: int) -> None:
                found.append(runner.run(one_round(form, Path(place), port, options)))
                print(f"  {found[-1]}", file=sys.stderr)

            interleaved(FORMS, options.rounds, measure)
    finally:
        server.kill()
        server.wait()
    rounds = {form: [one for one in found if one.form == form] for form in FORMS}
    p99 = {form: Spread.of(one.p99 for one in rounds[form]) for form in FORMS}
    lines = [
        [
            form,
            Spread.of(one.p50 for one in rounds[form]).text(),
            p99[form].text(),
            Spread.of(one.most for one in rounds[form]).text(),
            Spread.of(one.rate for one in rounds[form]).text(",.0f"),
        ]
        for form in FORMS
    ]
    # Not a ratio: on a quiet machine the lag without entries is a fifth of a millisecond.
    bars = [
        Bar(f"ms added to the p99 of the lag by {form}", p99[form].median - p99[FORMS[0]].median, 1.0, least=False)
        for form in FORMS[1:]
    ]
    bars += [
        Bar("entries lost", sum(one.lost for one in found), 0, least=False),
        Bar("entries that the collector lacks at the end", sum(one.behind for one in found), 0, least=False),
    ]
    heads = ["form", "median lag, ms", "p99, ms", "most, ms", "entries per second"]
    publish("audit", machine(), table(heads, lines), bars, found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
