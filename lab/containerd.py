"""A containerd in the network of a machine of the lab, without Docker above it."""

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

_SETTINGS = """\
version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{place}/containerd.sock"
"""


@dataclass
class Containerd:
    """A containerd on a machine's network."""

    machine: Machine
    socket: str

    def __call__(self, *words: str) -> CompletedProcess[str]:
        """Run `ctr`, containerd's own client."""
        return self.machine.run(["ctr", "--address", self.socket, *words], timeout=60)


@contextmanager
def containerd_on(machine: Machine) -> Iterator[Containerd]:
    """Run containerd in a machine's network; `ctr` says what it does for the registry."""
    network = machine.network_only()  # because an agent's own view of /sys has no cgroups
    with tempfile.TemporaryDirectory(prefix="containerd-") as folder:  # short, for the sockets in it
        place = Path(folder)
        settings, log = place / "config.toml", place / "log"
        settings.write_text(_SETTINGS.format(place=place))
        containerd = Containerd(network, f"{place}/containerd.sock")
        process = network.popen(["containerd", f"--config={settings}"], log=log)
        try:
            until(
                lambda: process.poll() is not None or containerd("version").returncode == 0,
                "containerd answers",
                timeout=30,
            )
            if process.poll() is not None:
                raise LabError(f"containerd does not start: {log.read_text()[-2000:]}")
            yield containerd
        finally:
            process.end(patience=10)
