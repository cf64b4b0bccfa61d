"""What is compared: our tunnel, `ssh -R`, autossh and asyncssh's own forwarder, each a process beside the registry.

python benchmarks/peers.py --serve HOW ADDRESS PORT TARGET FOLDER HOST_KEY    # one of those that are Python
python benchmarks/peers.py --forward KEY HOST:PORT…    # many at once
"""

import asyncio
import itertools
import logging
import os
import platform
import shutil
import sys
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import structlog

from lab.agents import LabAgent
from lab.gate_stand_ins import gate_with
from lab.namespaces import Machine
from lab.processes import Process, until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.daemon.event_loop import loop_factory
from tunnelmgr.dataplane.channel import ForwardedChannel, NoOwner
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.ssh.client import SAFE, dial
from tunnelmgr.ssh.login import Login

GCM = "aes128-gcm@openssh.com"
KEEPALIVE = 15
"""Seconds between two signs of life, for those that have them; ours probes as often."""
KINDS = ("ssh", "ssh-gcm", "autossh", "asyncssh", "asyncssh-gcm", "ours", "ours-gate")
SSH = ("ssh", "ssh-gcm", "autossh")
UP = "remote forward success"
"""What ssh says with -v; `forward_all` says it too."""
_ports = itertools.count(6001)


@dataclass(frozen=True)
class Tunnel:
    """One of them at work."""

    port: int
    process: Process

    @property
    def cpu(self) -> float:
        """The CPU seconds that it has used."""
        return cpu_of(self.process.pid)


@dataclass(frozen=True)
class Bench:
    """Where tunnels begin and end; `folder` holds the controller's key, `id_ed25519`."""

    controller: Machine
    agent: LabAgent
    folder: Path

    def hold(self, kind: str, address: str, target: Endpoint) -> Tunnel:
        """Start one, from a port of the agent's own; returns once the agent listens there."""
        port = next(_ports)
        if kind in SSH:
            words = ssh_command(kind, self.folder / "id_ed25519", f"127.0.0.1:{port}:{target}", f"tunnel@{address}")
        else:
            place = [address, str(port), str(target), str(self.folder), self.agent.host_key]
            words = [sys.executable, __file__, "--serve", kind, *place]
        process = self.controller.popen(words, log=self.folder / f"{kind}-{port}.log", env={"AUTOSSH_GATETIME": "0"})
        until(lambda: self.agent.listeners(port), f"{kind} listens", timeout=20)
        return Tunnel(port, process)


def ssh_command(kind: str, key: Path, forward: str, where: str, *more: str) -> list[str]:
    """Return the command of one `ssh -R`, alone, with AES-GCM, or under autossh."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes"]
    options += [
        *([] if "-v" in more else ["LogLevel=ERROR"]),
        f"ServerAliveInterval={KEEPALIVE}",
        "ServerAliveCountMax=1",
        "IdentitiesOnly=yes",
    ]
    words = [word for option in options for word in ("-o", option)]
    first = ["autossh", "-M", "0"] if kind == "autossh" else ["ssh"]
    cipher = ["-c", GCM] if kind.endswith("gcm") else []
    return [*first, "-F", "none", "-N", *more, *words, *cipher, "-i", str(key), "-R", forward, where]


def have(kind: str) -> bool:
    """Tell whether it can be run here."""
    return kind != "autossh" or shutil.which("autossh") is not None


# --- those that are Python ---


async def serve_ours(how: str, spec: TunnelSpec, login: Login, listen: Endpoint, target: Endpoint) -> None:
    """Hold a tunnel of ours, raw or through the gate."""
    policy = GroupPolicy.build("ci", pull=["**"])
    gate = gate_with(policy)
    caller = Caller(spec.agent, "bench", "ci", "bench", "127.0.0.1:5000")
    connection = await dial(spec, login)
    await connection.disable_nagle()

    async def serve(channel: ForwardedChannel) -> None:
        try:
            if how == "ours":
                await relay(channel, target, Traffic())
            else:
                await gate.serve(channel, caller, target, Traffic())
        finally:
            channel.close()

    async with asyncio.TaskGroup() as tasks:

        class Owner(NoOwner):
            def admit_channel(self) -> None:
                """Admit every channel."""

            def channel_opened(self, channel: ForwardedChannel) -> None:
                tasks.create_task(serve(channel), name="channel")

        await connection.listen(listen, Owner())
        await connection.lost.wait()


async def serve_asyncssh(how: str, address: str, key: Path, listen: Endpoint, target: Endpoint) -> None:
    """Hold asyncssh's own forwarder."""
    options: dict[str, Any] = {"config": None}
    if how.endswith("gcm"):
        options = {**SAFE, "encryption_algs": [GCM]}
    async with asyncssh.connect(
        address, username="tunnel", known_hosts=None, client_keys=[str(key)], keepalive_interval=KEEPALIVE, **options
    ) as connection:
        await connection.forward_remote_port(listen.host, listen.port, target.host, target.port)
        await connection.wait_closed()


async def forward_all(key: str, places: list[str]) -> None:
    """Hold asyncssh's own forwarder for the registry to each place, all dialled at once; prints `UP` for each."""

    async def hold(place: str) -> None:
        host, _, port = place.rpartition(":")
        options = {"config": None, "known_hosts": None, "login_timeout": 120, "keepalive_interval": KEEPALIVE}
        async with asyncssh.connect(host, int(port), username="tunnel", client_keys=[key], **options) as connection:
            await connection.forward_remote_port("127.0.0.1", 5000, "127.0.0.1", 5000)
            print(UP, flush=True)
            await connection.wait_closed()

    await asyncio.gather(*map(hold, places))


def forward_command(key: Path, places: Iterable[str]) -> list[str]:
    """Return the command of a process that does that."""
    return [sys.executable, __file__, "--forward", str(key), *places]


def serving(words: list[str]) -> Awaitable[None]:
    """Return one of them at work."""
    how, address, port, target, folder, host_key = words
    key, listen, host = Path(folder) / "id_ed25519", Endpoint("127.0.0.1", int(port)), target.rpartition(":")
    upstream = Endpoint(host[0], int(host[2]))
    if how.startswith("asyncssh"):
        return serve_asyncssh(how, address, key, listen, upstream)
    trust = HostTrust(Method.PINNED, (host_key,))
    spec = TunnelSpec(AgentId("static:bench"), "1", "bench", "ci", (address,), 22, (), trust)
    return serve_ours(how, spec, Login("tunnel", asyncssh.read_private_key(key), 5.0), listen, upstream)


# --- what they cost ---


def processes_of(group: int) -> dict[Path, list[str]]:
    """Return the places in /proc of a process group's members, with the fields of stat from its third (`proc(5)`)."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found[place] = fields
    return found


def cpu_of(group: int) -> float:
    """Return the CPU seconds that the processes of a group have used, with children that have ended."""
    ticks = sum(int(field) for fields in processes_of(group).values() for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_of(group: int) -> tuple[int, int]:
    """Return the bytes that a group's processes have resident, and their share of those (`proc(5)`, smaps_rollup)."""
    resident = share = 0
    for place in processes_of(group):
        for line in (place / "smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "Rss":
                resident += int(rest.split()[0]) * 1024
            elif name == "Pss":
                share += int(rest.split()[0]) * 1024
    return resident, share


def machine() -> str:
    """Return what the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    kernel = platform.release().partition("-")[0]
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {kernel}, Python {platform.python_version()}, "
        f"asyncssh {asyncssh.__version__}"
    )


if __name__ == "__main__":
    if sys.argv[1] == "--forward":
        asyncio.run(forward_all(sys.argv[2], sys.argv[3:]))
        sys.exit()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))  # as the daemon does
    with asyncio.Runner(loop_factory=loop_factory() if sys.argv[2].startswith("ours") else None) as runner:
        runner.run(serving(sys.argv[2:]))
