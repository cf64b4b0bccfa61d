"""A Docker engine in the network of a machine of the lab, where localhost:5000 is that machine's tunnel."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lab.processes import LabError, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from lab.namespaces import Machine

_OPTIONS = (
    *("--iptables=false", "--ip6tables=false", "--bridge=none", "--userland-proxy=false", "--storage-driver=vfs"),
    *("--max-concurrent-downloads=20", "--max-concurrent-uploads=20"),
)


@dataclass
class Docker:
    """A dockerd on a machine's network."""

    machine: Machine
    socket: str
    containerd: str
    """The path of the socket of the containerd that dockerd has started."""

    def __call__(self, *words: str) -> CompletedProcess[str]:
        """Run the docker command."""
        return self.machine.run(["docker", "-H", self.socket, *words], timeout=60)


@contextmanager
def dockerd_on(machine: Machine, *options: str) -> Iterator[Docker]:
    """Run dockerd in a machine's network, with nothing configured for the registry unless `options` do."""
    network = machine.network_only()  # because an agent's own view of /sys has no cgroups
    with tempfile.TemporaryDirectory(prefix="dockerd-") as place:  # short, for the sockets in it
        docker = Docker(network, f"unix://{place}/docker.sock", f"{place}/exec/containerd/containerd.sock")
        places = [f"--data-root={place}/root", f"--exec-root={place}/exec", f"--pidfile={place}/pid"]
        log = Path(place, "log")
        argv = ["dockerd", *_OPTIONS, *places, *options, f"--host={docker.socket}"]
        process = network.popen(argv, log=log)
        try:
            until(
                lambda: process.poll() is not None or docker("version").returncode == 0, "dockerd answers", timeout=30
            )
            if process.poll() is not None:
                raise LabError(f"dockerd does not start: {log.read_text()[-2000:]}")
            yield docker
        finally:
            process.end(patience=10)
