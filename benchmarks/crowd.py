"""Thousands of agents on one machine, with OpenSSH's own sshd: each has its port, its host key and its loopback.

An agent is a network namespace that has nothing but a loopback. A connection to its port is accepted outside, and its
sshd started inside with that connection (`sshd -i`), so that the listener on 127.0.0.1:5000 is the agent's own. That
takes a few milliseconds an agent, and no process until it is dialled.

    python benchmarks/crowd.py COUNT FOLDER     # in a network namespace, as root; serves until it is ended
"""

import ctypes
import fcntl
import os
import resource
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from lab.agents import SSH_PORT, LabAgent
from lab.processes import until
from tunnelmgr.hooks import sshd_settings

FIRST_PORT = 20_000
CENSUS = FIRST_PORT - 1
"""Where the crowd tells on how many of its agents port 5000 is listened on."""
LISTENS = "0100007F:1388 00000000:0000 0A"
"""How /proc/net/tcp tells of that: 127.0.0.1:5000, in state LISTEN (`proc_net_tcp(5)`)."""
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
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


@dataclass(frozen=True)
class Member:
    """One agent, as the controller's file names it."""

    name: str
    address: str
    port: int
    host_key: str

    @classmethod
    def of(cls, agent: LabAgent) -> "Member":
        """Return an agent of the lab's that is none of a crowd."""
        return cls(agent.name, agent.ip, SSH_PORT, agent.host_key)

    @property
    def toml(self) -> str:
        """Its entry in a source of type static."""
        return (
            f'[[source.agent]]\nname = "{self.name}"\naddress = "{self.address}"\nport = {self.port}\n'
            f'host_key = "{self.host_key}"\n'
        )


def gather(agent: LabAgent, count: int, folder: Path) -> list[Member]:
    """Have a crowd live on an agent of the lab; returns once all of them can be dialled."""
    folder.mkdir(parents=True)
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(count)]
    for number, key in enumerate(keys):
        key.write_private_key(folder / str(number))
        (folder / str(number)).chmod(0o600)
    (folder / "sshd_config").write_text(SETTINGS + sshd_settings("tunnel"))
    words = [sys.executable, __file__, str(count), str(folder)]
    agent.popen(words, log=folder / "crowd.log")
    until(lambda: "ready" in (folder / "crowd.log").read_text(), "the crowd is there", timeout=60 + count / 20)
    return [
        Member(f"a{number}", agent.ip, FIRST_PORT + number, " ".join(key.export_public_key().decode().split()[:2]))
        for number, key in enumerate(keys)
    ]


def source_of(members: Sequence[Member]) -> str:
    """Return the source of type static that names them all."""
    head = '[[source]]\nname = "crowd"\ntype = "static"\ntrust = ["pinned"]\n'
    return head + "".join(member.toml for member in members)


def listening(agent: LabAgent, among: int) -> int:
    """Return on how many of the first so many somebody listens on the registry's port."""
    with agent.connect("127.0.0.1", CENSUS, timeout=30) as connection:
        connection.sendall(b"%d" % among)
        return int(connection.recv(64))


def loopback(libc: ctypes.CDLL) -> int:
    """Make a network namespace whose loopback is up; returns a descriptor of it, and stays in it."""
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as any_socket:
        name = struct.pack("16sh22x", b"lo", 0)
        (flags,) = struct.unpack("16xh22x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, name))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def census(libc: ctypes.CDLL, insides: Sequence[int]) -> int:
    """Count those who listen; stays in the last one's namespace."""
    found = 0
    for inside in insides:
        libc.setns(inside, CLONE_NEWNET)
        found += LISTENS in Path("/proc/thread-self/net/tcp").read_text()
    return found


def serve(count: int, folder: Path) -> None:
    """Accept for all of them, and start an sshd for each connection."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * count + 100, 4 * count + 100))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
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
    waiting.register(socket.create_server(("127.0.0.1", CENSUS)), selectors.EVENT_READ, None)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            accepted, _ = key.fileobj.accept()  # type: ignore[union-attr]
            if key.data is None:
                accepted.sendall(b"%d" % census(libc, insides[: int(accepted.recv(64))]))
                accepted.close()
                libc.setns(outside, CLONE_NEWNET)
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
    serve(int(sys.argv[1]), Path(sys.argv[2]))
