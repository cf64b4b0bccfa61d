"""Machines to run programs on: the host, and network namespaces that are attached to one bridge.

The bridge is in a namespace of its own, so the host gets neither an interface nor an address, and labs with equal
subnets do not see each other.
"""

from __future__ import annotations

import ctypes
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

from lab import processes
from lab.processes import LabError, Processes, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from subprocess import CompletedProcess

_CLONE_NEWNET = 0x40000000  # setns(2)
_NAMED = Path("/run/netns")  # ip-netns(8)


class Machine:
    """A place to run programs: the network namespace `netns`, or the host itself if that is None."""

    def __init__(
        self, started: Processes | None = None, *, netns: Path | None = None, exec_prefix: Sequence[str] = ()
    ) -> None:
        self.processes = started or Processes()
        self._netns = netns
        self._exec_prefix = tuple(exec_prefix)

    @property
    def exec_prefix(self) -> list[str]:
        """The words to put before an argv to run it here."""
        return list(self._exec_prefix)

    def run(
        self,
        argv: Sequence[str],
        *,
        feed: str = "",
        timeout: float = 30.0,
        check: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> CompletedProcess[str]:
        """Run a program here to its end; see `processes.run`."""
        return processes.run([*self._exec_prefix, *argv], feed=feed, timeout=timeout, check=check, env=env)

    def popen(  # noqa: PLR0913 - these are the streams of a process
        self,
        argv: Sequence[str],
        *,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Stream = DEVNULL,
        stdout: Stream = DEVNULL,
        stderr: Stream = DEVNULL,
    ) -> processes.Process:
        """Start a program here; it ends with the lab at the latest."""
        whole = [*self._exec_prefix, *argv]
        return self.processes.start(whole, log=log, env=env, stdin=stdin, stdout=stdout, stderr=stderr)

    def connect(self, host: str, port: int, *, timeout: float = 5.0) -> socket.socket:
        """Open a TCP connection as a program here would; the socket then works in any thread of ours."""
        if self._netns is None:
            return socket.create_connection((host, port), timeout)
        with ThreadPoolExecutor(1) as executor:  # setns(2) moves one thread; this one ends after the call
            return executor.submit(_connect_within, self._netns, host, port, timeout).result(timeout + 5)

    def network_only(self) -> Machine:
        """Return a machine that has this one's network, and everything else from the host."""
        prefix = () if self._netns is None else ("nsenter", f"--net={self._netns}")
        return Machine(self.processes, netns=self._netns, exec_prefix=prefix)

    def listeners(self, port: int) -> list[str]:
        """Return the local addresses that have a listener on this TCP port, sorted; `*` is every address."""
        shown = self.run(["ss", "-Hltn", f"sport = :{port}"], check=True).stdout
        local = [line.split()[3] for line in shown.splitlines()]
        return sorted({address.rpartition(":")[0].strip("[]") for address in local})

    def require_free(self, port: int) -> None:
        """Raise LabError if this TCP port has a listener, whose answers we would take for our own server's."""
        if taken := self.listeners(port):
            raise LabError(f"another process listens on port {port} of {', '.join(taken)}. Stop it, then try again.")


class Namespace(Machine):
    """A network namespace with its own address on the lab's bridge."""

    def __init__(self, name: str, ip: str, started: Processes) -> None:
        super().__init__(started, netns=_NAMED / name, exec_prefix=("ip", "netns", "exec", name))
        self.name = name
        self.ip = ip


class Switch:
    """A bridge in a namespace of its own, and the namespaces that are attached to it."""

    def __init__(self, prefix: str, started: Processes) -> None:
        self._prefix = prefix
        self._processes = started
        self._name = f"{prefix}-switch"
        self._interfaces: dict[str, str] = {}  # namespace → its port on the bridge
        self._count = 0

    def open(self) -> None:
        """Make the bridge."""
        _ip("netns", "add", self._name)
        _ip("-n", self._name, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", self._name, "link", "set", "bridge0", "up")

    def attach(self, label: str, ip: str, *, ipv6: bool = True) -> Namespace:
        """Make a namespace with this IPv4 address on the bridge, and with ::1 on its loopback if `ipv6`."""
        self._count += 1
        name, interface = f"{self._prefix}-{self._count}-{label}", f"port{self._count}"
        _ip("netns", "add", name)
        self._interfaces[name] = interface
        namespace = Namespace(name, ip, self._processes)
        namespace.run(["sysctl", "-q", "-w", f"net.ipv6.conf.all.disable_ipv6={int(not ipv6)}"], check=True)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self._name, "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", self._name, "link", "set", interface, "master", "bridge0", "up")
        _ip("-n", name, "link", "set", "eth0", "address", _mac(ip), "up")
        _ip("-n", name, "addr", "add", f"{ip}/24", "dev", "eth0")
        return namespace

    def detach(self, namespace: Namespace) -> None:
        """Detach the namespace from the bridge: no further packet leaves it, not even a FIN."""
        if interface := self._interfaces.get(namespace.name):
            processes.run(["ip", "-n", self._name, "link", "del", interface])

    def remove(self, namespace: Namespace) -> None:
        """Delete the namespace and kill the processes in it."""
        self.detach(namespace)
        if self._interfaces.pop(namespace.name, None):
            _delete(namespace.name)

    def close(self) -> None:
        """Delete everything that was made here, also after an `attach` that failed."""
        while self._interfaces:
            _delete(self._interfaces.popitem()[0])
        _delete(self._name)


def _mac(ip: str) -> str:
    """Return an Ethernet address that is derived from the IP.

    A machine that reuses an IP is then reachable at once, as in a cloud. Otherwise the neighbour tables of the others
    would point to the dead machine for up to a minute.
    """
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x00, *IPv4Address(ip).packed))


def _ip(*arguments: str) -> None:
    processes.run(["ip", *arguments], check=True)


def _delete(name: str) -> None:
    """Delete a namespace of ours and kill its processes, also those that left their process group."""
    for pid in processes.run(["ip", "netns", "pids", name]).stdout.split():
        processes.kill(int(pid))
    processes.run(["ip", "netns", "del", name])


def _connect_within(netns: Path, host: str, port: int, timeout: float) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise LabError(f"cannot enter {netns}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)
    return socket.create_connection((host, port), timeout)
