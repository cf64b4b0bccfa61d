"""What readers of the API, the status page and the metrics take from the event loop, with a fleet of 5,000 agents.

One process serves them as the daemon does, with the product's loop, and a timer measures by how much the loop is late.
Another process asks for one path on 16 connections, again as soon as it has an answer. The forms take turns.

    python benchmarks/readers.py [--seconds 3] [--rounds 3] [--json FILE]
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from figures import Bar, Spread, interleaved, percentile, publish, table
from plan import FLEET, RULES, after, evidence, fleet
from tunnels import machine

from tunnelmgr.control.connections import LimitedRunner
from tunnelmgr.control.loop_share import LoopShare
from tunnelmgr.control.routes import ApiRoutes
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import Reconfigured, TunnelProbed
from tunnelmgr.core.evolve import evolve
from tunnelmgr.core.health import DaemonHealth, RegistryHealth
from tunnelmgr.core.world import World
from tunnelmgr.daemon.event_loop import loop_factory
from tunnelmgr.daemon.garbage import disable_full_collections
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.web.health import HealthRoutes
from tunnelmgr.web.pages import StatusPages

TICK = 0.002
"""Seconds between two measurements of the lag."""
NOBODY = "nobody"
PATHS = (NOBODY, "/v1/agents", "/v1/status", "/", "/metrics")
MAX_SHARE = 0.35
"""Of one core: a quarter for the answers, and aiohttp's own work for each request."""
MAX_LAG = 20.0
"""Milliseconds."""
READER = """
import asyncio, sys, time
import aiohttp

async def read(session, path, end):
    count = 0
    while time.monotonic() < end:
        async with session.get(path) as answer:
            await answer.read()
            count += answer.status == 200
    return count

async def main(url, path, seconds):
    async with aiohttp.ClientSession(url) as session:
        end = time.monotonic() + seconds
        print(sum(await asyncio.gather(*(read(session, path, end) for _ in range(16)))))

asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""


@dataclass(frozen=True)
class Round:
    """One round: the lag in milliseconds, the share of one core, and the answers a second."""

    path: str
    p50: float
    p99: float
    most: float
    share: float
    rate: float


@dataclass
class Fleet:
    """A daemon whose agents are all up and quiet."""

    world: World
    traffic: Mapping[AgentId, object] = field(default_factory=dict)

    def health(self) -> DaemonHealth:
        """Return that all is well."""
        return DaemonHealth("registry-1", "1.0.0", 1.0, RegistryHealth(reachable=True, loopback_only=True), None)

    def transfers(self) -> Sequence[object]:
        """Return that no request is in progress."""
        return ()

    refusals = last_hour = transfers


def world() -> World:
    """Return a world whose agents are all up."""
    found = after(evolve(World(), Reconfigured(RULES), 0.0), fleet())
    for event in evidence():
        found = evolve(found, event, 1.0)
    found = after(found)
    for one in FLEET:
        found = evolve(found, TunnelProbed(one.id, 1, 0.02), 1.0)
    return found


async def one_round(path: str, daemon: Fleet, options: argparse.Namespace) -> Round:
    """Measure one path for some seconds."""
    share, metrics = LoopShare(), Metrics()
    metrics.watch(daemon)  # type: ignore[arg-type]
    pages = StatusPages(daemon, time.time, share)  # type: ignore[arg-type]
    health = HealthRoutes(daemon, metrics)  # type: ignore[arg-type]
    api = ApiRoutes(daemon, time.time, share)  # type: ignore[arg-type]
    runner = LimitedRunner((*api.routes(), *pages.routes(), *health.routes()), [])
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    words = (sys.executable, "-c", READER, f"http://{host}:{port}", path, str(options.seconds))
    reader = None
    if path != NOBODY:
        reader = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    lags, began, cpu = [], time.monotonic(), time.process_time()
    while time.monotonic() < began + options.seconds:
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        lags.append(1000 * (time.monotonic() - due))
    took, used = time.monotonic() - began, time.process_time() - cpu
    answers = int((await reader.communicate())[0]) if reader else 0
    await runner.cleanup()
    return Round(path, percentile(lags, 0.5), percentile(lags, 0.99), max(lags), used / took, answers / took)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found: list[Round] = []
    daemon = Fleet(world())
    disable_full_collections()  # as the daemon does
    with asyncio.Runner(loop_factory=loop_factory()) as runner:

        def measure(path: str, _: int) -> None:
            found.append(runner.run(one_round(path, daemon, options)))
            print(f"  {found[-1]}", file=sys.stderr)

        interleaved(PATHS, options.rounds, measure)
    rounds = {path: [one for one in found if one.path == path] for path in PATHS}
    shares = {path: Spread.of(one.share for one in rounds[path]) for path in PATHS}
    lags = {path: Spread.of(one.p99 for one in rounds[path]) for path in PATHS}
    lines = [
        [
            path,
            lags[path].text(".1f"),
            Spread.of(one.most for one in rounds[path]).text(".1f"),
            shares[path].text(),
            Spread.of(one.rate for one in rounds[path]).text(",.0f"),
        ]
        for path in PATHS
    ]
    bars = [Bar(f"share of one core, {path}", shares[path].median, MAX_SHARE, least=False) for path in PATHS[1:]]
    bars += [Bar(f"p99 of the lag in ms, {path}", lags[path].median, MAX_LAG, least=False) for path in PATHS[1:]]
    heads = ["path", "lag p99, ms", "most, ms", "share of one core", "answers per second"]
    publish("readers", machine(), table(heads, lines), bars, found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
