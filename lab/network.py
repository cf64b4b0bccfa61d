"""The lab's network: one switch, the controller's machine, and agents; closing it removes everything."""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from lab.agents import AgentOptions, LabAgent
from lab.booted_machine import BootedMachine
from lab.faults import unresponsive
from lab.namespaces import Machine, Namespace, Switch
from lab.processes import LabError, Processes
from lab.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

CONTROLLER_IP = "10.77.0.1"  # agents take other addresses of 10.77.0.0/24

_PROGRAMS = {
    "ip": "iproute2",
    "ss": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sysctl": "procps",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
}
_serial = itertools.count(1)


class Lab:
    """A network of namespaces on this machine; leaving the `with` removes every process and namespace of it.

    Several labs can be open at once, in one process or in several: their names contain the process id and a number, and
    their equal addresses are on separate bridges.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = Processes()
        self._prefix = f"tunnelmgr-{os.getpid()}-{next(_serial)}"
        self._switch = Switch(self._prefix, self._processes)
        self._count = itertools.count(1)
        self._closing = ExitStack()
        self._controller: Namespace | None = None

    def __enter__(self) -> Self:
        _check_host()
        with ExitStack() as stack:
            stack.callback(self._switch.close)
            stack.callback(self._processes.end_all)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._switch.open()
            self._controller = self._switch.attach("controller", CONTROLLER_IP)
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def controller(self) -> Namespace:
        """The machine of the controller and the registry, from which agents are dialled."""
        if self._controller is None:
            raise LabError("the lab is not open: use `with Lab(folder) as lab`")
        return self._controller

    def agent(  # noqa: PLR0913 - each is one property of a machine
        self,
        name: str,
        ip: str,
        authorized_keys: str,
        *,
        host_key: Path | None = None,
        sshd_options: Sequence[str] = (),
        user: str = "tunnel",
        ipv6: bool = True,
    ) -> LabAgent:
        """Boot an agent at an address of 10.77.0.0/24 and return when its sshd listens.

        `host_key` is a private key file to use instead of a new key; `sshd_options` are lines of sshd_config that
        override the lab's own.
        """
        folder = self._folder / f"agent-{next(self._count)}-{name}"
        folder.mkdir(parents=True)
        agent = LabAgent(name, self._switch.attach(name, ip, ipv6=ipv6), self._switch, folder)
        with ExitStack() as undoing:
            undoing.callback(agent.kill)
            agent.boot(AgentOptions(user, authorized_keys, host_key, tuple(sshd_options)))
            undoing.pop_all()
        return agent

    def machine(self, name: str, ip: str) -> Namespace:
        """Attach one more machine at an address of 10.77.0.0/24, such as one for a member or for a database."""
        return self._switch.attach(name, ip)

    def boot(self, name: str, ip: str, lower: Sequence[Path]) -> BootedMachine:
        """Boot a machine with systemd at an address of 10.77.0.0/24; `lower` are the folders below its own changes."""
        folder = self._folder / f"machine-{next(self._count)}-{name}"
        machine = BootedMachine(name, self._switch.attach(name, ip), folder, lower)
        self._closing.callback(machine.power_off)
        machine.boot()
        return machine

    def lose(self, machine: Namespace) -> None:
        """Remove a machine without a last packet, and kill its processes; its IP is free for another at once."""
        self._switch.remove(machine)

    def add_unresponsive_networks(self, ip: str = "10.77.0.250") -> None:
        """Route the networks of `lab/faults/unresponsive.py` from the controller's machine."""
        router = self._switch.attach("unresponsive", ip)
        unresponsive.add_networks(router, self.controller, self._folder / "silent.log")

    def registry(
        self, machine: Machine | None, folder: Path, port: int = 5000, *, storage: Path | None = None
    ) -> Registry:
        """Start a docker-registry on a machine of the lab (None: on the host); closing the lab stops it.

        `storage` is the folder of its images, if it shares them with other registries.
        """
        return Registry(machine or Machine(self._processes), folder, port=port, storage=storage).start()


def _check_host() -> None:
    if os.geteuid():
        raise LabError("the lab makes network namespaces: run it as root")
    missing = sorted({package for program, package in _PROGRAMS.items() if not shutil.which(program)})
    if missing:
        raise LabError(f"the lab needs more programs: apt-get install {' '.join(missing)}")
