"""Looks every 20 ms who listens on the registry's port of each agent of a fleet, and writes down what changed.

Unlike requests, this gives the controllers and the agents' sshd no work, and a look at 200 agents takes less than 2 ms.
The process runs before others, and a late look is not taken for a gap. A listener belongs to a session of sshd, and
that to a connection, whose other end is a member: `Sessions` learns of each session when it starts.
"""

import contextlib
import ctypes
import json
import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.listener_history import Change, ListenerHistory

WATCH_INTERVAL = 0.02
"""Seconds between two looks at every agent's listeners."""
REGISTRY_PORT = 5000
ADDRESSES = ("127.0.0.1", "::1")
"""The addresses that the forward of a fleet listens on."""
CLONE_NEWNET = 0x40000000
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST = 4, 20, 1
ANY_STATE, ANY_COOKIE = 0xFFFFFFFF, 0xFFFFFFFF
SESSION = struct.Struct("=II4s")
"""A session of sshd: the agent's number, the process, the address of the other end."""


def _question(address: str) -> bytes:
    """Return the request for the listener on the registry's port at an address: `inet_diag_req_v2` in sock_diag(7)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    local = socket.inet_pton(family, address).ljust(16, b"\0")
    body = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, ANY_STATE)
    body += struct.pack(">HH", REGISTRY_PORT, 0) + local + bytes(16)
    body += struct.pack("=III", 0, ANY_COOKIE, ANY_COOKIE)
    return struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0) + body


QUESTIONS = {address: _question(address) for address in ADDRESSES}


class ListenerTable:
    """The listeners on the registry's port in a network namespace, by sock_diag(7).

    A request for one address takes 4 µs. A list of all listeners takes 30, because the kernel walks those of the whole
    machine, and /proc/net/tcp milliseconds, because it walks all connections too.
    """

    def __init__(self, libc: ctypes.CDLL, inside: int) -> None:
        libc.setns(inside, CLONE_NEWNET)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def listeners(self) -> dict[str, int]:
        """Return the inode of the socket that listens on each address."""
        found = {}
        for address, question in QUESTIONS.items():
            self._socket.send(question)
            answer = self._socket.recv(4096)
            if struct.unpack_from("=H", answer, 4) == (SOCK_DIAG_BY_FAMILY,):  # otherwise an error: there is none
                (found[address],) = struct.unpack_from("=I", answer, 84)
        return found


class Sessions:
    """The sessions of sshd, each with the address of the other end; told by the process that starts them."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._of_agent: dict[int, dict[int, str]] = defaultdict(dict)

    def started(self, agent: int, pid: int, peer: str) -> None:
        """Tell the watching process of a session."""
        os.write(self._write, SESSION.pack(agent, pid, socket.inet_aton(peer)))

    def learn(self) -> None:
        """Read what was told since the last time."""
        with contextlib.suppress(BlockingIOError):
            for number, pid, peer in SESSION.iter_unpack(os.read(self._read, SESSION.size * 4096)):
                self._of_agent[number][pid] = socket.inet_ntoa(peer)

    def owner(self, agent: int, inode: int) -> str | None:
        """Return the address of the other end of the session that has this socket; None if it has ended."""
        self.learn()
        sessions = self._of_agent[agent]
        for pid in [pid for pid in sessions if not Path(f"/proc/{pid}").exists()]:
            del sessions[pid]
        wanted = f"socket:[{inode}]"
        return next((peer for pid, peer in reversed(sessions.items()) if wanted in _descriptors(pid)), None)


def _descriptors(pid: int) -> Iterator[str]:
    """Yield what the descriptors of a process and of its descendants refer to."""
    with contextlib.suppress(OSError):  # it has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(entry.readlink())
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _descriptors(int(child))


class Watch:
    """What the looks have found, as lines of JSON."""

    def __init__(self, tables: Sequence[ListenerTable], sessions: Sessions, file: Path) -> None:
        self._tables = tables
        self._sessions = sessions
        self._log = file.open("w", buffering=1)
        self._inodes: list[dict[str, int]] = [{} for _ in tables]
        self._looked = [time.monotonic()] * len(tables)

    def run(self) -> None:
        """Look until the process is ended."""
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        reported = previous = time.monotonic()
        longest = 0.0
        while True:
            began = time.monotonic()
            longest, previous = max(longest, began - previous), began
            self._sessions.learn()
            for agent in range(len(self._tables)):
                self._look(agent)
            if began - reported >= 1:
                self._write({"looked": began, "longest": longest})
                reported, longest = began, 0.0
            time.sleep(max(0.0, WATCH_INTERVAL - (time.monotonic() - began)))

    def _look(self, agent: int) -> None:
        before, now = self._inodes[agent], self._tables[agent].listeners()
        at, last = time.monotonic(), self._looked[agent]
        self._looked[agent] = at
        if now == before:
            return
        for address in sorted(before.keys() | now.keys()):
            inode = now.get(address)
            if inode == before.get(address):
                continue
            member = None if inode is None else self._sessions.owner(agent, inode)
            if inode is not None and member is None:
                now.pop(address)  # its session is ending; the next look shows what remains
                if address not in before:
                    continue
            self._write({"agent": agent, "address": address, "member": member, "at": at, "last": last})
        self._inodes[agent] = now

    def _write(self, entry: dict[str, object]) -> None:
        self._log.write(json.dumps(entry) + "\n")


class WatchLog:
    """Reads what a watch writes, each time what is new."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0
        self._changes: list[Change] = []
        self._looked = 0.0
        self.longest = 0.0
        """The longest time between two looks, in seconds."""

    def history(self) -> ListenerHistory:
        """Return what was found so far."""
        with self._file.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for entry in map(json.loads, whole.splitlines()):
            if "looked" in entry:
                self._looked = entry["looked"]
                self.longest = max(self.longest, entry["longest"])
            else:
                self._changes.append(Change(**entry))
        latest = [change.at for change in self._changes[-1:]]
        return ListenerHistory(self._changes, max([self._looked, *latest]))
