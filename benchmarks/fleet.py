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
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from lab.agents import SSH_PORT, LabAgent
from lab.processes import until
from tunnelmgr.hooks import sshd_settings

FIRST_PORT = 20_000
COUNT_PORT = FIRST_PORT - 1
"""The port that answers with the number of agents that have a listener on port 5000."""
WATCH_INTERVAL = 0.02
"""Seconds between two looks at every agent's listener."""
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
CLONE_NEWNET = 0x40000000
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, NLMSG_DONE, TCP_LISTEN = 4, 20, 0x301, 3, 10
REGISTRY_PORT = 5000
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


def start_fleet(agent: LabAgent, count: int, folder: Path, *, watched: bool = False) -> list[FleetAgent]:
    """Start a fleet on an agent of the lab; return when all of its agents can be dialled.

    If it is `watched`, `gaps.jsonl` in the folder has a line for each time that an agent was without its listener.
    """
    folder.mkdir(parents=True)
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


class ListenerTable:
    """Says whether a network namespace has a listener on the registry's port, by sock_diag(7).

    That walks the machine's listeners, in microseconds; /proc/net/tcp walks its table of all connections, in
    milliseconds.
    """

    def __init__(self, libc: ctypes.CDLL, inside: int) -> None:
        libc.setns(inside, CLONE_NEWNET)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def listens(self) -> bool:
        """Ask the kernel."""
        body = struct.pack("=BBxxI48x", socket.AF_INET, socket.IPPROTO_TCP, 1 << TCP_LISTEN)
        self._socket.send(struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_DUMP, 1, 0) + body)
        found = False
        while True:
            data = self._socket.recv(65536)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == NLMSG_DONE:
                    return found
                found = found or (
                    kind == SOCK_DIAG_BY_FAMILY and struct.unpack_from(">H", data, 20) == (REGISTRY_PORT,)
                )
                data = data[(length + 3) & ~3 :]


def watch(tables: Sequence[ListenerTable], file: Path) -> None:
    """Look every `WATCH_INTERVAL` seconds which agents have a listener; write a line for each gap between two.

    Unlike requests, this gives the controllers and the agents' sshd no work. But it needs CPU time: a look takes 6 ms
    with 200 agents, and 23 ms with 500, because each answer of the kernel walks the listeners of the whole machine. The
    process runs before others, and a gap counts only if a look found no listener: a late look does not. The seconds are
    from the last look before the gap to the first one after it.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    seen: dict[int, float] = {}
    absent: set[int] = set()
    with file.open("w", buffering=1) as log:
        while True:
            began = time.time()
            for number, table in enumerate(tables):
                if not table.listens():
                    absent.add(number)
                    continue
                now = time.time()
                if number in absent and number in seen:
                    gap = {"agent": number, "since": seen[number], "seconds": now - seen[number]}
                    log.write(json.dumps(gap) + "\n")
                absent.discard(number)
                seen[number] = now
            time.sleep(max(0.0, WATCH_INTERVAL - (time.time() - began)))


def serve(count: int, folder: Path, *, watched: bool) -> None:
    """Accept connections for all agents, and start an sshd for each connection."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * count + 100, 4 * count + 100))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    libc = ctypes.CDLL(None, use_errno=True)
    outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    insides: list[int] = []
    waiting = selectors.DefaultSelector()
    for number in range(count):
        inside = loopback(libc)
        insides.append(inside)
        libc.setns(outside, CLONE_NEWNET)
        listener = socket.create_server(("", FIRST_PORT + number), backlog=16)
        waiting.register(listener, selectors.EVENT_READ, (inside, folder / str(number)))
    waiting.register(socket.create_server(("127.0.0.1", COUNT_PORT)), selectors.EVENT_READ, None)
    if watched and not os.fork():
        prctl_with_parent(libc)
        watch([ListenerTable(libc, inside) for inside in insides], folder / "gaps.jsonl")
    tables = [ListenerTable(libc, inside) for inside in insides]
    libc.setns(outside, CLONE_NEWNET)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            accepted, _ = key.fileobj.accept()  # type: ignore[union-attr]
            if key.data is None:
                accepted.sendall(b"%d" % sum(table.listens() for table in tables[: int(accepted.recv(64))]))
                accepted.close()
                continue
            inside, host_key = key.data
            if not os.fork():
                libc.setns(inside, CLONE_NEWNET)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for stream in (0, 1):
                    os.dup2(accepted.fileno(), stream)
                os.execv(SSHD, [SSHD, "-i", "-e", "-f", str(folder / "sshd_config"), "-h", str(host_key)])  # noqa: S606
            accepted.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), watched="--watch" in sys.argv[3:])
