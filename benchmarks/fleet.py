"""Thousands of agents on one machine, with OpenSSH's own sshd: each has its port, its host key and its loopback.

An agent is a network namespace with only a loopback interface. A connection to its port is accepted outside, and sshd
is started inside with that connection (`sshd -i`), so that the listener on 127.0.0.1:5000 is the agent's own. That
takes a few milliseconds per agent, and no process until the agent is dialled.

    python benchmarks/fleet.py COUNT FOLDER [--watch]     # in a network namespace, as root; serves until it is ended
"""

import ctypes
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from listener_watch import CLONE_NEWNET, ListenerTable, Sessions, Watch

from lab.agents import SSH_PORT, LabAgent
from lab.processes import until
from tunnelmgr.hooks import sshd_settings

FIRST_PORT = 20_000
COUNT_PORT = FIRST_PORT - 1
"""The port that answers with the number of agents that have a listener on port 5000."""
SSHD = "/usr/sbin/sshd"
SETTINGS = """\
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
LogLevel ERROR
PidFile none
LoginGraceTime 0
"""
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


@dataclass(frozen=True)
class FleetAgent:
    """One agent, as in the controller's configuration."""

    name: str
    address: str
    port: int
    host_key: str

    @classmethod
    def of(cls, agent: LabAgent) -> "FleetAgent":
        """Return an agent of the lab that is not part of a fleet."""
        return cls(agent.name, agent.ip, SSH_PORT, agent.host_key)

    @property
    def toml(self) -> str:
        """Its entry in a source of type static."""
        return (
            f'[[source.agent]]\nname = "{self.name}"\naddress = "{self.address}"\nport = {self.port}\n'
            f'host_key = "{self.host_key}"\n'
        )


def start_fleet(
    agent: LabAgent,
    count: int,
    folder: Path,
    *,
    watched: bool = False,
    clients: Iterable[tuple[int, Sequence[str]]] = (),
) -> list[FleetAgent]:
    """Start a fleet on an agent of the lab; return when all of its agents can be dialled.

    If it is `watched`, `listeners.jsonl` in the folder says who listened where and when (`listener_watch.py`).
    `clients` are programs that run on agents from the beginning: the agent's number, and the arguments.
    """
    folder.mkdir(parents=True)
    (folder / "clients.json").write_text(json.dumps(list(clients)))
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(count)]
    for number, key in enumerate(keys):
        key.write_private_key(folder / str(number))
        (folder / str(number)).chmod(0o600)
    (folder / "sshd_config").write_text(SETTINGS + sshd_settings("tunnel"))
    argv = [sys.executable, __file__, str(count), str(folder), *(["--watch"] if watched else [])]
    agent.popen(argv, log=folder / "fleet.log")
    until(lambda: "ready" in (folder / "fleet.log").read_text(), "the fleet is ready", timeout=60 + count / 20)
    return [
        FleetAgent(f"a{number}", agent.ip, FIRST_PORT + number, " ".join(key.export_public_key().decode().split()[:2]))
        for number, key in enumerate(keys)
    ]


def static_source(members: Sequence[FleetAgent]) -> str:
    """Return a static source with all of these agents."""
    head = '[[source]]\nname = "fleet"\ntype = "static"\ntrust = ["pinned"]\n'
    return head + "".join(member.toml for member in members)


def count_listening(agent: LabAgent, among: int) -> int:
    """Return how many of the first `among` agents have a listener on the registry's port."""
    with agent.connect("127.0.0.1", COUNT_PORT, timeout=30) as connection:
        connection.sendall(b"%d" % among)
        return int(connection.recv(64))


def loopback(libc: ctypes.CDLL) -> int:
    """Make a network namespace whose loopback is up; return its descriptor, and stay in it."""
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as any_socket:
        name = struct.pack("16sh22x", b"lo", 0)
        (flags,) = struct.unpack("16xh22x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, name))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def prctl_with_parent(libc: ctypes.CDLL) -> None:
    """End this process together with its parent (PR_SET_PDEATHSIG, `prctl(2)`)."""
    libc.prctl(1, signal.SIGKILL)


def start_clients(libc: ctypes.CDLL, insides: Sequence[int], file: Path) -> None:
    """Start each program of the file on its agent."""
    for number, argv in json.loads(file.read_text()):
        if not os.fork():
            prctl_with_parent(libc)
            libc.setns(insides[number], CLONE_NEWNET)
            os.execv(argv[0], argv)  # noqa: S606


def serve(count: int, folder: Path, *, watched: bool) -> None:
    """Accept connections for all agents, and start an sshd for each connection."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3 * count + 100, 3 * count + 100))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    libc, sessions = ctypes.CDLL(None, use_errno=True), Sessions()
    outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    insides: list[int] = []
    waiting = selectors.DefaultSelector()
    for number in range(count):
        inside = loopback(libc)
        insides.append(inside)
        libc.setns(outside, CLONE_NEWNET)
        listener = socket.create_server(("", FIRST_PORT + number), backlog=16)
        waiting.register(listener, selectors.EVENT_READ, number)
    waiting.register(socket.create_server(("127.0.0.1", COUNT_PORT)), selectors.EVENT_READ, None)
    if watched and not os.fork():
        prctl_with_parent(libc)
        Watch([ListenerTable(libc, inside) for inside in insides], sessions, folder / "listeners.jsonl").run()
    start_clients(libc, insides, folder / "clients.json")
    tables = [ListenerTable(libc, inside) for inside in insides]
    libc.setns(outside, CLONE_NEWNET)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            accepted, peer = key.fileobj.accept()  # type: ignore[union-attr]
            if key.data is None:
                accepted.sendall(b"%d" % sum(map(bool, (one.listeners() for one in tables[: int(accepted.recv(64))]))))
                accepted.close()
                continue
            host_key = folder / str(key.data)
            if pid := os.fork():
                if watched:
                    sessions.started(key.data, pid, peer[0])
            else:
                libc.setns(insides[key.data], CLONE_NEWNET)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for stream in (0, 1):
                    os.dup2(accepted.fileno(), stream)
                os.execv(SSHD, [SSHD, "-i", "-e", "-f", str(folder / "sshd_config"), "-h", str(host_key)])  # noqa: S606
            accepted.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), watched="--watch" in sys.argv[3:])
