"""The stage of the abuse tests: agents and the controller's side as processes, and what is read off them.

`OPENS`, `REQUESTS`, `HOSTILE` and `PROBE_INTERVAL` in the environment set the sizes; unset, they are those of
continuous integration. `make abuse-full` takes those that are promised.
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

from tests.ssh.ssh_server import free_port, generate, public, running_tcp_server, until

ROOT = Path(__file__).parents[2]
OPENS = int(os.environ.get("OPENS", "20000"))
REQUESTS = int(os.environ.get("REQUESTS", "20000"))
PROBE_INTERVAL = float(os.environ.get("PROBE_INTERVAL", "1"))
HOSTILE = int(os.environ.get("HOSTILE", "6"))
MIB = 1 << 20
PULLED = 400 * MIB
Facts = dict[str, Any]


@dataclass
class Child:
    """A process, and the lines of JSON that it has said."""

    process: asyncio.subprocess.Process
    said: list[Facts] = field(default_factory=list)

    def tell(self, **order: object) -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")

    async def listen(self) -> None:
        """Keep what it says until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(json.loads(line))

    async def answer(self, deadline: float, **order: object) -> Facts:
        """Give it an order and return its next line."""
        before = len(self.said)
        self.tell(**order)
        await until(lambda: len(self.said) > before, deadline)
        return self.said[before]


@dataclass
class Agent:
    """An agent on the stage; its tunnel's forward listens on `listen`."""

    id: str
    child: Child
    port: int
    host_key: str
    protocol: str = "registry"
    probe_interval: float = 0.1
    listen: int = field(default_factory=free_port)

    async def do(self, attack: str, deadline: float = 60.0, **how: object) -> Facts:
        """Make it attack."""
        return await self.child.answer(deadline, do=attack, port=self.listen, **how)


@dataclass
class Controller:
    """The controller's side on the stage."""

    child: Child

    def events(self, kind: str, agent: Agent) -> list[Facts]:
        """Return what was reported of an agent."""
        return [said for said in self.child.said if said["event"] == kind and said["agent"] == agent.id]

    async def probed(self, agent: Agent, more: int = 1, deadline: float = 10.0) -> list[float]:
        """Wait for so many more probes to come back, and return how long each took."""
        before = len(self.events("probed", agent))
        await until(lambda: len(self.events("probed", agent)) >= before + more, deadline)
        return [event["took"] for event in self.events("probed", agent)[before:]]

    async def ended(self, agent: Agent, deadline: float = 60.0) -> Facts:
        """Wait for a tunnel's end."""
        await until(lambda: self.events("ended", agent), deadline)
        return self.events("ended", agent)[0]

    async def holds(self) -> Facts:
        """Return what the process holds."""
        before = sum(said["event"] == "holds" for said in self.child.said)
        self.child.tell()
        await until(lambda: sum(said["event"] == "holds" for said in self.child.said) > before, 30)
        return [said for said in self.child.said if said["event"] == "holds"][-1]

    @property
    def resident(self) -> int:
        """Bytes of memory that it has now."""
        return _memory(self.child.process.pid, "VmRSS")

    @property
    def peak(self) -> int:
        """The most bytes of memory that it has had since `forget_peak`."""
        return _memory(self.child.process.pid, "VmHWM")

    def forget_peak(self) -> None:
        """Count the peak from here."""
        Path(f"/proc/{self.child.process.pid}/clear_refs").write_text("5")


def _memory(pid: int, field_: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field_ + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field_}")


def tell(words: str) -> None:
    """Print a figure, for `pytest -rP`."""
    print(words)  # noqa: T201 - it is what the test is run for


@asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncIterator[Child]:
    """Run one of the processes; it ends with its standard input, or is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.abuse.{module}",
        *arguments,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    made = Child(process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.listen(), name=f"{module} says")
        try:
            yield made
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@dataclass
class Stage:
    """Agents and a controller's side, and the key between them."""

    tasks: "Opener"
    key: asyncssh.SSHKey = field(default_factory=generate)

    async def agent(self, id_: str, **how: Any) -> Agent:  # noqa: ANN401 - the fields of Agent
        """Start an agent that behaves so far; the one that is called bad runs in the background."""
        made = await self.tasks(child("agent_side", "19" if id_.startswith("bad") else "-10"))
        assert made.process.stdin is not None
        made.process.stdin.write(public(self.key).encode() + b"\n")
        await until(lambda: made.said, 20)
        return Agent(f"static:{id_}", made, made.said[0]["port"], made.said[0]["host_key"], **how)

    async def controller(self, *agents: Agent, **how: object) -> Controller:
        """Start the controller's side and wait until every tunnel is up."""
        target = await self.tasks(running_tcp_server(give_blob))
        made = await self.tasks(child("controller_side"))
        order = {"max_channels": 128, "connect_timeout": 10.0, "no_op_budget": True} | how
        told = [
            {name: getattr(agent, name) for name in ("id", "port", "host_key", "listen", "protocol", "probe_interval")}
            for agent in agents
        ]
        key = self.key.export_private_key().decode()
        made.tell(**order, agents=told, key=key, target=target.port)
        controller = Controller(made)
        for agent in agents:
            await until(lambda agent=agent: controller.events("probed", agent), 20)
        return controller


Opener = Callable[[Any], Any]
"""Enters a context that is left at the end of the test."""


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    """Set the stage, and clear it away."""
    async with AsyncExitStack() as stack:
        yield Stage(stack.enter_async_context)


async def give_blob(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be the registry: answer whatever is asked with a blob of 400 MiB."""
    if not await reader.read(4096):  # a probe of a raw forward only connects
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % PULLED)
    for _ in range(PULLED // MIB):
        writer.write(bytes(MIB))
        await writer.drain()
