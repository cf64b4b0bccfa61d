"""What one tunnel carries: MB/s and controller CPU a GiB, beside `ssh -R`, autossh and asyncssh's own forwarder.

Every variant holds its own port of one agent with a real sshd, between network namespaces; all pull the same bytes from
one source, in turn, round by round, so that whatever else the machine does hits all alike. Each figure is the median of
the rounds with its extremes; ratios are to `ssh -R` with its default cipher, in the same round. Needs root.

    python benchmarks/throughput.py [--rounds 5] [--connections 1,4,8] [--mib 384] [--only ours,ssh] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncssh

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.demo.lab import Lab
from tunnelmgr.demo.processes import until
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.session import Gate
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.tunnel.channel import ForwardedChannel
from tunnelmgr.tunnel.keys import Login, make_key, public_line
from tunnelmgr.tunnel.ssh import SAFE, dial

MIB = 1024 * 1024
IP = "10.77.0.11"
SOURCE, REGISTRY = Endpoint("127.0.0.1", 7000), Endpoint("127.0.0.1", 5000)
GCM = "aes128-gcm@openssh.com"
BASE = "ssh"
PORTS = {"ssh": 6001, "ssh-gcm": 6002, "autossh": 6003, "asyncssh": 6004, "asyncssh-gcm": 6005, "ours": 6006}
PORTS |= {"ours-gate": 6007, "registry-raw": 6008, "registry-gate": 6009, "registry-ssh": 6010}
BLOB = "/v2/bench/app/blobs/"


# --- the source: a file sent by the kernel, which costs next to nothing ---


def source(octets: int) -> None:
    """Answer every request with as many bytes; serves until it is ended."""
    content = os.memfd_create("content")
    os.truncate(content, octets)
    os.pwrite(content, os.urandom(octets), 0)
    with socket.create_server((SOURCE.host, SOURCE.port), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=send_out, args=(connection, content, octets), daemon=True, name="send").start()


def send_out(connection: socket.socket, content: int, octets: int) -> None:
    """Answer the requests of one connection."""
    with connection:
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % octets)
            sent = 0
            while sent < octets:
                sent += os.sendfile(connection.fileno(), content, sent, octets - sent)


# --- the load, on the agent ---


def load(port: int, target: str, connections: int) -> float:
    """Pull `target` once on each connection; returns the bytes a second of all together."""
    totals: list[int] = []
    began = time.perf_counter()
    pulls = [
        threading.Thread(target=lambda: totals.append(pull(port, target)), name="pull") for _ in range(connections)
    ]
    for one in pulls:
        one.start()
    for one in pulls:
        one.join()
    if len(totals) < connections:
        raise SystemExit("a pull failed")
    return sum(totals) / (time.perf_counter() - began)


def pull(port: int, target: str) -> int:
    """Pull once, without looking at the body."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost:5000\r\nUser-Agent: bench\r\n\r\n".encode())
        start = b""
        while b"\r\n\r\n" not in start:
            more = connection.recv(4096)
            if not more:
                raise SystemExit("no answer")
            start += more
        head, _, body = start.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"unexpected answer: {head[:200]!r}")
        octets = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        left, room = octets - len(body), memoryview(bytearray(MIB))
        while left:
            count = connection.recv_into(room[: min(left, MIB)])
            if not count:
                raise SystemExit("an answer was broken off")
            left -= count
        return octets


# --- the controller's side ---


def spec(host_key: str) -> TunnelSpec:
    """Return the tunnel to the agent."""
    trust = HostTrust(Method.PINNED, (host_key,))
    return TunnelSpec(AgentId("static:bench"), "1", "bench", "ci", (IP,), 22, (), trust)


async def serve_ours(folder: Path, host_key: str, forwards: dict[int, tuple[str, Endpoint]]) -> None:
    """Hold a tunnel of ours; each port goes raw or through the gate."""
    policy = GroupPolicy.build("ci", pull=["**"])
    gate = Gate(policy=lambda _: policy, proof=lambda nonce, _: nonce)
    caller = Caller(AgentId("static:bench"), "bench", "ci", "bench", "127.0.0.1:5000")
    connection = await dial(spec(host_key), Login("tunnel", asyncssh.read_private_key(folder / "id_ed25519"), 5.0))
    await connection.quicken()

    async def serve(channel: ForwardedChannel, how: str, target: Endpoint) -> None:
        try:
            if how == "raw":
                await relay(channel, target, Traffic())
            else:
                await gate.serve(channel, caller, target, Traffic())
        finally:
            channel.close()

    async with asyncio.TaskGroup() as tasks:
        for port, (how, target) in forwards.items():

            def opened(channel: ForwardedChannel, how: str = how, target: Endpoint = target) -> None:
                tasks.create_task(serve(channel, how, target), name="channel")

            await connection.listen(Endpoint("127.0.0.1", port), lambda: None, opened, lambda: None)
        await connection.lost.wait()


async def serve_asyncssh(folder: Path, port: int, ciphers: list[str]) -> None:
    """Hold asyncssh's own forwarder."""
    options: dict[str, Any] = {**SAFE, "encryption_algs": ciphers} if ciphers else {"config": None}
    async with asyncssh.connect(
        IP, username="tunnel", known_hosts=None, client_keys=[str(folder / "id_ed25519")], **options
    ) as connection:
        await connection.forward_remote_port("127.0.0.1", port, SOURCE.host, SOURCE.port)
        await connection.wait_closed()


def ssh(folder: Path, port: int, *more: str, target: Endpoint = SOURCE, program: str = "ssh") -> list[str]:
    """Return the command of one `ssh -R`."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes", "LogLevel=ERROR"]
    words = [word for option in options for word in ("-o", option)]
    forward = f"127.0.0.1:{port}:{target}"
    first = [program, "-M", "0"] if program == "autossh" else [program]
    return [*first, "-F", "none", "-N", *words, "-i", str(folder / "id_ed25519"), *more, "-R", forward, f"tunnel@{IP}"]


def commands(folder: Path, host_key: str) -> dict[str, list[str]]:
    """Return how each variant is started, one process each."""
    ours = [sys.executable, __file__, "--serve"]
    found = {
        "ssh": ssh(folder, PORTS["ssh"]),
        "ssh-gcm": ssh(folder, PORTS["ssh-gcm"], "-c", GCM),
        "asyncssh": [*ours, "asyncssh", str(folder), host_key],
        "asyncssh-gcm": [*ours, "asyncssh-gcm", str(folder), host_key],
        "ours": [*ours, "ours", str(folder), host_key],
        "ours-gate": [*ours, "ours-gate", str(folder), host_key],
        "registry-ssh": ssh(folder, PORTS["registry-ssh"], target=REGISTRY),
        "registry-raw": [*ours, "registry-raw", str(folder), host_key],
        "registry-gate": [*ours, "registry-gate", str(folder), host_key],
    }
    if shutil.which("autossh"):
        found["autossh"] = ssh(folder, PORTS["autossh"], program="autossh")
    return found


def serving(variant: str, folder: Path, host_key: str) -> Awaitable[None]:
    """Return one of ours at work."""
    port = PORTS[variant]
    if variant.startswith("asyncssh"):
        return serve_asyncssh(folder, port, [GCM] if variant.endswith("gcm") else [])
    target = REGISTRY if variant.startswith("registry") else SOURCE
    return serve_ours(folder, host_key, {port: ("gate" if variant.endswith("gate") else "raw", target)})


# --- the run ---


@dataclass
class Sample:
    """One measurement."""

    variant: str
    connections: int
    number: int
    mb_per_s: float
    cpu_s_per_gib: float


def cpu_of(group: int) -> float:
    """Return the CPU seconds that the processes of a group have used."""
    used = 0.0
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            used += sum(map(int, fields[11:15]))
    return used / os.sysconf("SC_CLK_TCK")


def run(options: argparse.Namespace) -> list[Sample]:
    """Measure every variant in turn."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as place, Lab(Path(place)) as lab:
        folder = Path(place)
        make_key(folder / "id_ed25519", "bench")
        agent = lab.agent("agent", IP, public_line(folder / "id_ed25519"), sshd_options=["MaxSessions 32"])
        lab.controller.popen([sys.executable, __file__, "--source", str(options.mib * MIB)], log=folder / "source.log")
        until(lambda: lab.controller.listeners(SOURCE.port), "the source listens")
        targets = {"": f"{BLOB}sha256:{'0' * 64}", "registry": ""}
        chosen = {
            name: words
            for name, words in commands(folder, agent.host_key).items()
            if not options.only or name in options.only.split(",")
        }
        if any(name.startswith("registry") for name in chosen):
            registry = lab.registry(lab.controller, folder / "registry")
            targets["registry"] = BLOB + push(lab, registry.url, options.mib * MIB)
        groups: dict[str, int] = {}
        for name, words in chosen.items():
            groups[name] = lab.controller.popen(words, log=folder / f"{name}.log").pid
            until(lambda name=name: agent.listeners(PORTS[name]), f"{name} listens", timeout=15)
        for number in range(-1, options.rounds):
            for connections in map(int, options.connections.split(",")):
                for name in list(chosen)[:: 1 if number % 2 else -1]:
                    before = cpu_of(groups[name])
                    target = targets[name.partition("-")[0] if name.startswith("registry") else ""]
                    words = [sys.executable, __file__, "--load", str(PORTS[name]), target, str(connections)]
                    speed = float(agent.run(words, timeout=120, check=True).stdout)
                    gib = connections * options.mib / 1024
                    if number >= 0:  # the round before is to warm up
                        spent = (cpu_of(groups[name]) - before) / gib
                        samples.append(Sample(name, connections, number, speed / 1e6, spent))
    return samples


PUSH = """
import hashlib, http.client, os, sys
content = os.urandom(int(sys.argv[2]))
def ask(method, target, body=b""):
    connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
    connection.request(method, target, body)
    answer = connection.getresponse()
    answer.read()
    assert answer.status < 400, answer.status
    return answer.getheader("Location", "").partition(sys.argv[1])[2]
digest = "sha256:" + hashlib.sha256(content).hexdigest()
ask("PUT", ask("POST", "/v2/bench/app/blobs/uploads/") + "&digest=" + digest, content)
print(digest)
"""


def push(lab: Lab, url: str, octets: int) -> str:
    """Push a blob from beside the registry; returns its digest."""
    words = [sys.executable, "-c", PUSH, url.removeprefix("http://"), str(octets)]
    return lab.controller.run(words, timeout=60, check=True).stdout.strip()


def table(samples: list[Sample]) -> str:
    """Return the table, a line for each variant and number of connections."""
    lines = [
        "| connections | variant | MB/s | ratio (min to max) | CPU s/GiB | CPU ratio |",
        "|---|---|---|---|---|---|",
    ]
    found = {(sample.variant, sample.connections, sample.number): sample for sample in samples}
    for connections in sorted({sample.connections for sample in samples}):
        for variant in dict.fromkeys(sample.variant for sample in samples):
            mine = [sample for sample in samples if (sample.variant, sample.connections) == (variant, connections)]
            base = "registry-ssh" if variant.startswith("registry") else BASE
            pairs = [
                (sample, found[base, connections, sample.number])
                for sample in mine
                if (base, connections, sample.number) in found
            ]
            lines.append(f"| {connections} | {variant} | {told(mine, pairs)} |")
    return "\n".join(lines)


def told(mine: list[Sample], pairs: list[tuple[Sample, Sample]]) -> str:
    """Return the figures of one line."""
    median = statistics.median
    ratios = [one.mb_per_s / other.mb_per_s for one, other in pairs] or [0.0]
    costs = [one.cpu_s_per_gib / other.cpu_s_per_gib for one, other in pairs if other.cpu_s_per_gib] or [0.0]
    speed, spent = median(one.mb_per_s for one in mine), median(one.cpu_s_per_gib for one in mine)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{speed:.0f} | {median(ratios):.2f} ({spread}) | {spent:.2f} | {median(costs):.2f}"


def role(words: list[str]) -> int | None:
    """Be one of the processes that the run starts; None when this is the run itself."""
    match words:
        case ["--source", octets]:
            source(int(octets))
        case ["--load", port, target, connections]:
            print(load(int(port), target, int(connections)))
        case ["--serve", variant, folder, host_key]:
            asyncio.run(serving(variant, Path(folder), host_key))
        case _:
            return None
    return 0


def main() -> int:
    """Run the benchmark, or a part of it."""
    if (done := role(sys.argv[1:])) is not None:
        return done
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", default="1,4,8")
    parser.add_argument("--mib", type=int, default=384, help="that each connection pulls")
    parser.add_argument("--only", default="", help="variants, by commas")
    parser.add_argument("--json", type=Path, help="write the samples there, too")
    options = parser.parse_args()
    samples = run(options)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )
    print(table(samples))
    if options.json:
        options.json.write_text(json.dumps([asdict(sample) for sample in samples], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
