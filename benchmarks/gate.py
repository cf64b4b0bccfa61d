"""The cost of the gate: requests per second for manifests and MB/s for blobs, compared with the raw relay.

Both paths serve the same real docker-registry in this process, over a loopback listener that stands for the agents'
channels; a second process loads them in turn, round by round, so that other load on the machine affects both equally.
Each figure is the median of the rounds with its extremes; the ratio of gate to raw is the median of the rounds' ratios.
The CPU time is that of this process, per request or per MB.

    python benchmarks/gate.py [--rounds 5] [--seconds 1.0] [--blob-mib 256] [--json FILE]
"""

import argparse
import asyncio
import hashlib
import http.client
import json
import logging
import operator
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from figures import Bar, Spread, publish, table
from pull_load import MIB, load_command
from tunnels import machine

from lab.gate_stand_ins import gate_with
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.ports import AgentChannel, ByteSource
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.daemon.event_loop import loop_factory
from tunnelmgr.dataplane.fair_queue import Share, fair_queue
from tunnelmgr.dataplane.ssh_packets import BATCH_PACKETS, PACKET_DATA_BYTES
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.target_socket import TargetSocket
from tunnelmgr.gate.traffic import Traffic

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
BARS = {"manifests": 0.70, "blobs": 0.95}
UNITS = {"manifests": "requests/s", "blobs": "MB/s"}
CONNECTIONS = 4


# --- the registry ---


@contextmanager
def running_registry(folder: Path) -> Iterator[Endpoint]:
    """Run a docker-registry that stores in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = Endpoint("127.0.0.1", probe.getsockname()[1])
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "content")}},
        "http": {"addr": str(endpoint)},
    }
    (folder / "registry.json").write_text(json.dumps(settings))
    environment = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
    command = ["docker-registry", "serve", str(folder / "registry.json")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            wait_for(endpoint)
            yield endpoint
        finally:
            process.terminate()


def wait_for(endpoint: Endpoint) -> None:
    """Wait until the port has a listener."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((endpoint.host, endpoint.port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def ask(endpoint: Endpoint, method: str, target: str, body: bytes = b"", kind: str = "") -> str:
    """Send one request and return the path of the response's Location."""
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=60)
    connection.request(method, target, body, {"Content-Type": kind} if kind else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status >= http.HTTPStatus.BAD_REQUEST:
        raise SystemExit(f"{method} {target}: {answer.status}")
    return (answer.getheader("Location") or "").partition(str(endpoint))[2]


def push_blob(endpoint: Endpoint, content: bytes) -> str:
    """Push a blob and return its digest."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    target = ask(endpoint, "POST", "/v2/benchmark/app/blobs/uploads/")
    ask(endpoint, "PUT", f"{target}&digest={digest}", content, "application/octet-stream")
    return digest


def seed(endpoint: Endpoint, blob_mib: int) -> dict[str, str]:
    """Push the content; return the target of each measurement."""
    blob = push_blob(endpoint, os.urandom(MIB) * blob_mib)
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 2}
    layer = {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": blob_mib * MIB, "digest": blob}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config | {"digest": push_blob(endpoint, b"{}")},
        "layers": [layer],
    }
    ask(endpoint, "PUT", "/v2/benchmark/app/manifests/v1", json.dumps(manifest).encode(), MANIFEST_TYPE)
    return {"manifests": "/v2/benchmark/app/manifests/v1", "blobs": f"/v2/benchmark/app/blobs/{blob}"}


# --- the two paths ---


class Accepted(TargetSocket):
    """A connection of the load, which stands for an agent's channel."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self._seen = b""
        share = Share(fair_queue(asyncio.get_running_loop()))
        self.scheduled = share.scheduled
        self.checkpoint = share.checkpoint

    async def wanted(self) -> bool:
        """Wait for the next request."""
        self._seen = await super().read()
        return bool(self._seen)

    def intercept(self, takes: Callable[[bytes], bool] | None) -> None:
        """Do nothing: the load has no probes."""

    async def read(self) -> bytes:
        """Return what has arrived."""
        seen, self._seen = self._seen, b""
        return seen or await super().read()

    async def send_from(self, source: ByteSource, limit: int, on_sent: Callable[[int], None]) -> int:
        """Send data from `source`, one batch at a time, as a tunnel does."""
        room, left = memoryview(bytearray(BATCH_PACKETS * PACKET_DATA_BYTES)), limit
        while left:
            count = source.receive_into((room[:left],))
            if count is None:
                await readable(source)
                continue
            if not count:
                break
            left -= count
            on_sent(count)
            self.send(room[:count])
            await self.drained()
        return limit - left


async def readable(source: ByteSource) -> None:
    """Wait until the source has data."""
    event = asyncio.Event()
    source.notify_readable(event.set)
    try:
        await event.wait()
    finally:
        source.notify_readable(None)


class Serve:
    """Serves one channel, by the gate or by the raw relay."""

    def __init__(self, path: str, registry: Endpoint) -> None:
        policy = GroupPolicy.build("ci")
        self._gate = gate_with(policy) if path == "gate" else None
        self._caller = Caller(
            AgentId("static:benchmark"), "1", "benchmark", "ci", "benchmark", "127.0.0.1:5000", "registry"
        )
        self._registry = registry
        self._forward = Forward("registry", (), registry)

    async def __call__(self, channel: AgentChannel) -> None:
        """Serve the channel until it ends."""
        if self._gate is None:
            await relay(channel, self._registry, Traffic())
        else:
            await self._gate.serve(channel, self._caller, self._forward, Traffic())


def listen(path: str, registry: Endpoint, tasks: asyncio.TaskGroup) -> tuple[int, asyncio.Task[None]]:
    """Open the listener of one path and return its port, and the task that accepts."""
    serve = Serve(path, registry)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.setblocking(False)

    async def accept() -> None:
        while True:
            connected, _ = await asyncio.get_running_loop().sock_accept(listener)
            tasks.create_task(serve(Accepted(connected)), name="channel")

    return int(listener.getsockname()[1]), tasks.create_task(accept(), name=f"accept {path}")


# --- the load ---


async def loaded(port: int, target: str, seconds: float, connections: int) -> tuple[int, int, float]:
    """Run the load in another process."""
    command = load_command(port, target, seconds, connections)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"the load failed with exit status {process.returncode}")
    requests, received, took = json.loads(out)
    return requests, received, took


# --- the run ---

Figures = dict[str, dict[str, list[float]]]


async def measure(registry: Endpoint, targets: dict[str, str], rounds: int, seconds: float) -> Figures:
    """Measure both paths in turn; the order changes in each round."""
    figures: Figures = {what: {"gate": [], "raw": [], "gate cpu": [], "raw cpu": []} for what in targets}
    async with asyncio.TaskGroup() as tasks:
        listeners = {path: listen(path, registry, tasks) for path in ("gate", "raw")}
        for number in range(-1, rounds):
            for what, target in targets.items():
                for path in ("gate", "raw") if number % 2 else ("raw", "gate"):
                    many = CONNECTIONS if what == "manifests" else 1
                    used = time.process_time()
                    requests, received, took = await loaded(listeners[path][0], target, seconds, many)
                    used = time.process_time() - used
                    if number >= 0:  # round -1 is the warm-up
                        amount = requests if what == "manifests" else received / 1e6
                        figures[what][path].append(amount / took)
                        figures[what][f"{path} cpu"].append(used / amount * 1e6)
        for _, accepting in listeners.values():
            accepting.cancel()
    return figures


def rows(figures: Figures) -> list[list[str]]:
    """Return the table's lines."""
    return [
        [what, path, UNITS[what], Spread.of(series[path]).text(".0f"), Spread.of(series[f"{path} cpu"]).text(".0f")]
        for what, series in figures.items()
        for path in ("gate", "raw")
    ]


def bars(figures: Figures) -> list[Bar]:
    """Return the medians of the rounds' ratios, because a busy machine slows both paths of a round."""
    return [
        Bar(f"{what}, gate to raw", Spread.of(map(operator.truediv, series["gate"], series["raw"])).median, BARS[what])
        for what, series in figures.items()
    ]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load in each measurement")
    parser.add_argument("--blob-mib", type=int, default=256)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))  # as the daemon does
    with tempfile.TemporaryDirectory() as folder, running_registry(Path(folder)) as registry:
        targets = seed(registry, options.blob_mib)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:  # as the daemon does
            figures = runner.run(measure(registry, targets, options.rounds, options.seconds))
    heads = ["what", "path", "in", "speed", "µs CPU for each"]
    publish("gate", machine(), table(heads, rows(figures)), bars(figures), figures, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
