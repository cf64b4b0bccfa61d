"""The lab: one switch, a controller's machine, and as many agents as asked for, all gone when it closes."""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from lab import unresponsive
from lab.agents import AgentOptions, LabAgent
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
    """A network on one machine; enter it, and leave it to have every process and namespace of it removed.

    Several labs may stand at once, in one process or in several: their names carry the process id and a number, and
    their equal addresses live on separate bridges.
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
        """The machine beside the registry, from which agents are dialled."""
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
        """Start an agent at an address of 10.77.0.0/24; return when its sshd listens.

        `host_key` is a private key file to use instead of a new key; `sshd_options` are lines of sshd_config that
        outweigh the lab's own.
        """
        folder = self._folder / f"agent-{next(self._count)}-{name}"
        folder.mkdir(parents=True)
        agent = LabAgent(name, self._switch.attach(name, ip, ipv6=ipv6), self._switch, folder)
        try:
            agent.boot(AgentOptions(user, authorized_keys, host_key, tuple(sshd_options)))
        except BaseException:
            agent.kill()
            raise
        return agent

    def unresponsive(self, ip: str = "10.77.0.250") -> None:
        """Let the controller's machine have a way to networks where nobody answers; see `lab/unresponsive.py`."""
        unresponsive.put_behind(self._switch.attach("unresponsive", ip), self.controller, self._folder / "silent.log")

    def registry(
        self,
        machine: Machine | None,
        folder: Path,
        port: int = 5000,
        host: str = "127.0.0.1",
        *,
        read_only: bool = False,
    ) -> Registry:
        """Start a docker-registry on a machine of the lab (None: on the host); it ends with the lab at the latest."""
        where = machine or Machine(self._processes)
        return Registry(where, folder, port=port, host=host, read_only=read_only).start()


def _check_host() -> None:
    if os.geteuid():
        raise LabError("the lab makes network namespaces: run it as root")
    missing = sorted({package for program, package in _PROGRAMS.items() if not shutil.which(program)})
    if missing:
        raise LabError(f"the lab needs more programs: apt-get install {' '.join(missing)}")
