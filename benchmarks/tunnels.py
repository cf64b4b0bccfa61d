"""The tunnels that are compared: ours, `ssh -R`, autossh and asyncssh's own forwarder, each a process.

python benchmarks/tunnels.py --serve KIND ADDRESS PORT TARGET FOLDER HOST_KEY    # one that is in Python
python benchmarks/tunnels.py --forward KEY HOST:PORT…    # many in one process
"""

import asyncio
import itertools
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import structlog

from lab.agents import LabAgent
from lab.gate_stand_ins import gate_with
from lab.namespaces import Machine
from lab.processes import Process, until
from tunnelmgr.cache.blob_cache import BlobCache
from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.trust import HostTrust, Method
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.daemon.event_loop import loop_factory
from tunnelmgr.dataplane.channel import ForwardedChannel, NoOwner
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.relay import relay
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.ssh.client import SAFE, dial
from tunnelmgr.ssh.login import Login

GCM = "aes128-gcm@openssh.com"
KEEPALIVE = 15
"""Seconds between two keepalives, and between two probes of ours."""
KINDS = ("ssh", "ssh-gcm", "autossh", "asyncssh", "asyncssh-gcm", "ours", "ours-gate")
SSH = ("ssh", "ssh-gcm", "autossh")
UP = "remote forward success"
"""The message of ssh with -v; `forward_all` prints it too."""
_ports = itertools.count(6001)


@dataclass(frozen=True)
class Tunnel:
    """One tunnel that is up."""

    port: int
    process: Process

    @property
    def cpu(self) -> float:
        """The CPU seconds that it has used."""
        return cpu_of(self.process.pid)


@dataclass(frozen=True)
class TunnelStarter:
    """Starts tunnels from the controller's machine to an agent; `folder` has the controller's key, `id_ed25519`."""

    controller: Machine
    agent: LabAgent
    folder: Path

    def start(self, kind: str, address: str, target: Endpoint) -> Tunnel:
        """Start a tunnel with a port of its own; return when the agent listens there."""
        port = next(_ports)
        if kind in SSH:
            argv = ssh_command(kind, self.folder / "id_ed25519", f"127.0.0.1:{port}:{target}", f"tunnel@{address}")
        else:
            place = [address, str(port), str(target), str(self.folder), self.agent.host_key]
            argv = [sys.executable, __file__, "--serve", kind, *place]
        process = self.controller.popen(argv, log=self.folder / f"{kind}-{port}.log", env={"AUTOSSH_GATETIME": "0"})
        until(lambda: self.agent.listeners(port), f"{kind} listens", timeout=20)
        return Tunnel(port, process)


def ssh_command(kind: str, key: Path, forward: str, where: str, *more: str) -> list[str]:
    """Return the command of one `ssh -R`: plain, with AES-GCM, or under autossh."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ExitOnForwardFailure=yes"]
    options += [
        *([] if "-v" in more else ["LogLevel=ERROR"]),
        f"ServerAliveInterval={KEEPALIVE}",
        "ServerAliveCountMax=1",
        "IdentitiesOnly=yes",
    ]
    argv = [argument for option in options for argument in ("-o", option)]
    first = ["autossh", "-M", "0"] if kind == "autossh" else ["ssh"]
    cipher = ["-c", GCM] if kind.endswith("gcm") else []
    return [*first, "-F", "none", "-N", *more, *argv, *cipher, "-i", str(key), "-R", forward, where]


def is_available(kind: str) -> bool:
    """Report whether this kind can run here."""
    return kind != "autossh" or shutil.which("autossh") is not None


# --- the tunnels in Python ---


async def serve_ours(how: str, spec: TunnelSpec, login: Login, listen: Endpoint, target: Endpoint) -> None:
    """Run a tunnel of ours, as a raw relay, through the gate, or through the gate with a cache."""
    policy = GroupPolicy.build("ci", pull=["**"])
    gate = gate_with(policy, blobs=empty_cache() if how == "ours-cache" else None)
    caller = Caller(spec.agent, spec.incarnation, "benchmark", "ci", "benchmark", "127.0.0.1:5000", "registry")
    connection = await dial(spec, login)
    await connection.disable_nagle()

    async def serve(channel: ForwardedChannel) -> None:
        try:
            if how == "ours":
                await relay(channel, target, Traffic())
            else:
                await gate.serve(channel, caller, Forward("registry", (listen,), target), Traffic())
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


def empty_cache() -> BlobCache:
    """Return a cache in a new folder, which the process leaves behind."""
    files = BlobFiles(Path(tempfile.mkdtemp(prefix="tunnelmgr-benchmark-")), 2**30, 0)
    files.scan()
    return BlobCache(files)


async def serve_asyncssh(how: str, address: str, key: Path, listen: Endpoint, target: Endpoint) -> None:
    """Run asyncssh's own forwarder."""
    options: dict[str, Any] = {"config": None}
    if how.endswith("gcm"):
        options = {**SAFE, "encryption_algs": [GCM]}
    async with asyncssh.connect(
        address, username="tunnel", known_hosts=None, client_keys=[str(key)], keepalive_interval=KEEPALIVE, **options
    ) as connection:
        await connection.forward_remote_port(listen.host, listen.port, target.host, target.port)
        await connection.wait_closed()


async def forward_all(key: str, places: list[str]) -> None:
    """Run asyncssh's own forwarder to each address, all dialled at once; print `UP` for each."""

    async def hold(place: str) -> None:
        host, _, port = place.rpartition(":")
        options = {"config": None, "known_hosts": None, "login_timeout": 120, "keepalive_interval": KEEPALIVE}
        async with asyncssh.connect(host, int(port), username="tunnel", client_keys=[key], **options) as connection:
            await connection.forward_remote_port("127.0.0.1", 5000, "127.0.0.1", 5000)
            print(UP, flush=True)
            await connection.wait_closed()

    await asyncio.gather(*map(hold, places))


def forward_command(key: Path, places: Iterable[str]) -> list[str]:
    """Return the command that runs `forward_all`."""
    return [sys.executable, __file__, "--forward", str(key), *places]


def serving(arguments: list[str]) -> Awaitable[None]:
    """Return the coroutine of one tunnel."""
    how, address, port, target, folder, host_key = arguments
    key, listen, host = Path(folder) / "id_ed25519", Endpoint("127.0.0.1", int(port)), target.rpartition(":")
    upstream = Endpoint(host[0], int(host[2]))
    if how.startswith("asyncssh"):
        return serve_asyncssh(how, address, key, listen, upstream)
    trust = HostTrust(Method.PINNED, (host_key,))
    spec = TunnelSpec(AgentId("static:benchmark"), "1", "benchmark", "ci", (address,), 22, (), trust)
    return serve_ours(how, spec, Login("tunnel", asyncssh.read_private_key(key), 5.0), listen, upstream)


# --- cost ---


def processes_of(group: int) -> dict[Path, list[str]]:
    """Return the /proc folders of a process group, with the fields of `stat` from the third on (`proc(5)`)."""
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
    return sum(map(_cpu_seconds, processes_of(group).values()))


def cpu_of_process(pid: int) -> float:
    """Return the CPU seconds that a process has used, without its children."""
    return _cpu_seconds(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:13])


def _cpu_seconds(fields: Sequence[str]) -> float:
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


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
    """Return a description of this machine."""
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
