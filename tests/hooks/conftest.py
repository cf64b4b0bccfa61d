"""Fixtures for the wait script: real shells, real HTTP clients, and a port on loopback that behaves as a test needs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    Answerer = Callable[[str], Iterable[bytes]]

SHELLS = [["dash"], ["bash", "--posix"]] + ([["busybox", "ash"]] if shutil.which("busybox") else [])
CLIENTS = [name for name in ("curl", "wget", "wget2", "busybox") if shutil.which(name)]
TOOLS = ("sleep", "dd", "tr", "date")


class LoopbackPort:
    """One loopback address, which refuses connections until it is opened."""

    def __init__(self, family: socket.AddressFamily, address: str, port: int = 0) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self._threads: list[threading.Thread] = []
        self._held: list[socket.socket] = []
        self.asked: list[str] = []
        self.port: int = self._socket.getsockname()[1]

    def open(self, answerer: Answerer) -> None:
        """Listen, and answer every request by what `answerer` yields for its path."""
        self._socket.listen(16)
        thread = threading.Thread(target=self._accept, args=(answerer,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """Stop, and close the connections that still hang."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for held in self._held:
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self, answerer: Answerer) -> None:
        while True:
            try:
                taken, _ = self._socket.accept()
            except OSError:
                return
            self._held.append(taken)
            thread = threading.Thread(target=self._serve, args=(taken, answerer), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, taken: socket.socket, answerer: Answerer) -> None:
        with closing(taken), suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                piece = taken.recv(4096)
                if not piece:
                    return
                head += piece
            path = head.split(b" ", 2)[1].decode()
            self.asked.append(path)
            for piece in answerer(path):
                taken.sendall(piece)


@dataclass
class Localhost:
    """Both of localhost's addresses at one port."""

    v4: LoopbackPort
    v6: LoopbackPort

    @property
    def registry(self) -> str:
        """The registry as docker names it."""
        return f"localhost:{self.v4.port}"


@pytest.fixture
def localhost() -> Iterator[Localhost]:
    """Reserve a port on 127.0.0.1 and ::1, without a listener."""
    with ExitStack() as stack:
        for _ in range(20):
            v4 = LoopbackPort(socket.AF_INET, "127.0.0.1")
            try:
                v6 = LoopbackPort(socket.AF_INET6, "::1", v4.port)
            except OSError:  # taken there by chance
                v4.close()
                continue
            stack.callback(v4.close)
            stack.callback(v6.close)
            break
        else:
            pytest.fail("these tests need a loopback interface with 127.0.0.1 and ::1")
        yield Localhost(v4, v6)


@dataclass
class Outcome:
    """The result of one run."""

    code: int
    out: str
    err: str
    took: float


@dataclass
class Hook:
    """The settings of a run of the script, which a test may change before it."""

    directory: Path
    registry: str
    shell: list[str] = field(default_factory=lambda: ["dash"])
    client: str = "curl"
    wait: str = "20"
    text: str = field(default_factory=(files("tunnelmgr.hooks") / "wait.sh").read_text)
    environment: dict[str, str] = field(default_factory=dict)

    def hurry(self) -> None:
        """Shorten its tolerance for other processes; nothing else changes."""
        for was, now in (
            ("foreign_patience=300", "foreign_patience=30"),
            ("silent_patience=2000", "silent_patience=60"),
        ):
            assert self.text.count(was) == 1
            self.text = self.text.replace(was, now)

    def start(self, *options: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Start it on a machine that has nothing but the few programs it needs."""
        script = self.directory / "tunnelmgr-wait"
        script.write_text(self.text)
        tools = self.directory / "bin"
        tools.mkdir(exist_ok=True)
        for name in TOOLS:
            if not (tools / name).exists():
                (tools / name).symlink_to(str(shutil.which(name)))
        if self.client:
            name = "curl" if self.client == "curl" else "wget"
            (tools / name).symlink_to(str(shutil.which(self.client)))
        shell = str(shutil.which(self.shell[0]))
        return subprocess.Popen(
            [shell, *self.shell[1:], str(script), *options],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PATH": str(tools),
                "TUNNELMGR_WAIT": self.wait,
                "TUNNELMGR_REGISTRY": self.registry,
                **self.environment,
            },
        )

    def run(self, *options: str, stdin: int = subprocess.DEVNULL) -> Outcome:
        """Run it to its end."""
        began = time.monotonic()
        with self.start(*options, stdin=stdin) as process:
            out, err = process.communicate(timeout=60)
        return Outcome(process.returncode, out, err, time.monotonic() - began)


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> list[str]:
    """Return each shell that the script must run in; a test that asks for it runs in all."""
    found: list[str] = request.param
    return found


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """Return each HTTP client that the script must work with; a test that asks for it runs with all."""
    found: str = request.param
    return found


@pytest.fixture
def hook(tmp_path: Path, localhost: Localhost) -> Hook:
    """Return the script, to be run by dash with curl against `localhost`."""
    return Hook(tmp_path, localhost.registry)


@pytest.fixture
def filled_stdin() -> Iterator[tuple[int, Callable[[], str]]]:
    """Return a stdin with a line in it, and a function that returns what is left of it."""
    reading, writing = os.pipe()
    os.write(writing, b"for another program\n")
    os.close(writing)
    yield reading, lambda: os.read(reading, 100).decode()
    os.close(reading)
