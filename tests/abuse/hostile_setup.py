"""Agents and the controller side as processes of their own, and what the tests read from them.

`OPENS`, `REQUESTS`, `HOSTILE` and `PROBE_INTERVAL` in the environment set the sizes; the defaults are those of
continuous integration. `make abuse-full` uses the full sizes.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from tests.ssh.ssh_server import free_port, generate, public, running_tcp_server
from tests.until import until

ROOT = Path(__file__).parents[2]
OPENS = int(os.environ.get("OPENS", "20000"))
REQUESTS = int(os.environ.get("REQUESTS", "20000"))
PROBE_INTERVAL = float(os.environ.get("PROBE_INTERVAL", "1"))
HOSTILE = int(os.environ.get("HOSTILE", "6"))
MIB = 1 << 20
PULLED = 400 * MIB
Facts = dict[str, Any]


@dataclass
class ChildProcess:
    """A child process, and the lines of JSON that it has printed."""

    process: asyncio.subprocess.Process
    lines: list[Facts] = field(default_factory=list)

    def send(self, **order: object) -> None:
        """Send the process a line of JSON."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")

    async def read_lines(self) -> None:
        """Collect the process's lines until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))

    async def answer(self, deadline: float, **order: object) -> Facts:
        """Send the process a command and return its next line."""
        before = len(self.lines)
        self.send(**order)
        await until(lambda: len(self.lines) > before, deadline)
        return self.lines[before]


@dataclass
class Agent:
    """An agent's process; its tunnel's forward listens on port `listen`."""

    id: str
    child: ChildProcess
    port: int
    host_key: str
    protocol: str = "registry"
    probe_interval: float = 0.1
    listen: int = field(default_factory=free_port)

    async def do(self, attack: str, deadline: float = 60.0, **how: object) -> Facts:
        """Start an attack and return its result."""
        return await self.child.answer(deadline, do=attack, port=self.listen, **how)


@dataclass
class Controller:
    """The controller side's process."""

    child: ChildProcess

    def events(self, kind: str, agent: Agent) -> list[Facts]:
        """Return the reported events of one kind about an agent."""
        return [line for line in self.child.lines if line["event"] == kind and line["agent"] == agent.id]

    async def probed(self, agent: Agent, more: int = 1, deadline: float = 10.0) -> list[float]:
        """Wait for `more` further probes to succeed, and return the seconds that each took."""
        before = len(self.events("probed", agent))
        await until(lambda: len(self.events("probed", agent)) >= before + more, deadline)
        return [event["took"] for event in self.events("probed", agent)[before:]]

    async def ended(self, agent: Agent, deadline: float = 60.0) -> Facts:
        """Wait for the end of a tunnel."""
        await until(lambda: self.events("ended", agent), deadline)
        return self.events("ended", agent)[0]

    async def holds(self) -> Facts:
        """Return the number of channels and tasks, and the CPU time, of the process."""
        before = sum(line["event"] == "holds" for line in self.child.lines)
        self.child.send()
        await until(lambda: sum(line["event"] == "holds" for line in self.child.lines) > before, 30)
        return [line for line in self.child.lines if line["event"] == "holds"][-1]

    @property
    def cpu(self) -> float:
        """The process's CPU time so far, in seconds (proc_pid_stat(5))."""
        fields = Path(f"/proc/{self.child.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident(self) -> int:
        """The process's memory now, in bytes."""
        return _memory(self.child.process.pid, "VmRSS")

    @property
    def peak(self) -> int:
        """The process's largest memory since `forget_peak`, in bytes."""
        return _memory(self.child.process.pid, "VmHWM")

    def forget_peak(self) -> None:
        """Reset the peak to the present memory."""
        Path(f"/proc/{self.child.process.pid}/clear_refs").write_text("5")


def _memory(pid: int, field_: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field_ + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field_}")


def print_figure(words: str) -> None:
    """Print a measured figure, for `pytest -rP`."""
    print(words)  # noqa: T201 - it is what the test is run for


@asynccontextmanager
async def child(tasks: asyncio.TaskGroup, module: str, *arguments: str) -> AsyncIterator[ChildProcess]:
    """Run one of the processes; at the end it is killed. `tasks` reads its output until then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.abuse.{module}",
        *arguments,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    made = ChildProcess(process)
    tasks.create_task(made.read_lines(), name=f"{module} output")
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass
class Setup:
    """The processes of one test, and the controller's key."""

    tasks: asyncio.TaskGroup
    enter: "EnterContext"
    key: asyncssh.SSHKey = field(default_factory=generate)

    async def agent(self, id_: str, **how: Any) -> Agent:  # noqa: ANN401 - the fields of Agent
        """Start an agent; one whose id begins with `bad` gets the lowest CPU priority."""
        made = await self.enter(child(self.tasks, "agent_side", "19" if id_.startswith("bad") else "-10"))
        assert made.process.stdin is not None
        made.process.stdin.write(public(self.key).encode() + b"\n")
        await until(lambda: made.lines, 20)
        return Agent(f"static:{id_}", made, made.lines[0]["port"], made.lines[0]["host_key"], **how)

    async def controller(self, *agents: Agent, **how: object) -> Controller:
        """Start the controller side and wait until every tunnel is up."""
        target = await self.enter(running_tcp_server(serve_blob))
        made = await self.enter(child(self.tasks, "controller_side"))
        order = {"max_channels": 128, "connect_timeout": 10.0, "no_op_budget": True} | how
        specs = [
            {name: getattr(agent, name) for name in ("id", "port", "host_key", "listen", "protocol", "probe_interval")}
            for agent in agents
        ]
        key = self.key.export_private_key().decode()
        made.send(**order, agents=specs, key=key, target=target.port)
        controller = Controller(made)
        for agent in agents:
            await until(lambda agent=agent: controller.events("probed", agent), 20)
        return controller


EnterContext = Callable[[Any], Any]
"""Enters a context that ends with the test."""


@asynccontextmanager
async def hostile_setup() -> AsyncIterator[Setup]:
    """Enter a setup whose processes end with the context."""
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        yield Setup(tasks, stack.enter_async_context)


async def serve_blob(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Act as a registry that responds to any request with a blob of 400 MiB."""
    if not await reader.read(4096):  # a probe of a raw forward only connects
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % PULLED)
    for _ in range(PULLED // MIB):
        writer.write(bytes(MIB))
        await writer.drain()
