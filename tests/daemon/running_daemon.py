"""The whole daemon as a process, for tests that ask it over its socket."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from lab.processes import LabError
from tests.daemon.conftest import Site
from tests.until import until_elsewhere
from tunnelmgr.control.client import ControlClient
from tunnelmgr.errors import DaemonNotRunningError


class Process:
    """A running daemon and its log."""

    def __init__(self, child: asyncio.subprocess.Process, client: ControlClient) -> None:
        self.child = child
        self.client = client
        self.output = b""

    async def listen(self) -> None:
        """Collect its log."""
        assert self.child.stderr is not None
        while line := await self.child.stderr.readline():
            self.output += line

    async def ask(self, question: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - JSON
        """Send a request over its socket."""
        return await asyncio.to_thread(question, *arguments)

    def answers(self) -> bool:
        """Return whether it answers on its socket."""
        try:
            self.client.status()
        except DaemonNotRunningError:
            return False
        return True

    def agents(self) -> dict[str, dict[str, Any]]:
        """Return its agents by name; none if it does not answer."""
        try:
            return {agent["name"]: agent for agent in self.client.agents()}
        except DaemonNotRunningError:
            return {}

    async def phase(self, phase: str, name: str = "builder-1") -> dict[str, Any]:
        """Wait until an agent is in a phase, and return it."""

        def in_phase() -> dict[str, Any] | None:
            if self.child.returncode is not None:
                raise LabError(f"the daemon has ended with {self.child.returncode}")
            agent = self.agents().get(name)
            return agent if agent is not None and agent["phase"] == phase else None

        try:
            return cast("dict[str, Any]", await until_elsewhere(in_phase, f"{name} is {phase}", 20))
        except LabError as failed:
            raise AssertionError(f"{failed}:\n{self.output.decode()}") from failed

    async def until_state(self, *, ok: bool) -> None:
        """Wait until `status` shows whether the state can be written."""
        await until_elsewhere(lambda: self.client.status()["state"]["ok"] is ok, f"the state's `ok` is {ok}", 30)

    async def until_received(self, count: int) -> None:
        """Wait until its first agent has sent this many bytes."""
        await until_elsewhere(lambda: self.client.agents()[0]["bytes_from_agent"] >= count, f"{count} bytes arrive")

    async def until_draining(self) -> None:
        """Wait until `status` shows that a stop was requested."""
        await until_elsewhere(lambda: self.client.status()["draining"], "the daemon drains")

    async def end(self, within: float = 10) -> int:
        """Wait until it ends and return its exit status."""
        async with asyncio.timeout(within):
            return await self.child.wait()


@asynccontextmanager
async def daemon(site: Site, **environment: str) -> AsyncIterator[Process]:
    """Run the daemon as a child."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tunnelmgr",
        "run",
        "-c",
        site.write(),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    process = Process(child, ControlClient(site.socket))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(process.listen(), name="log")
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def fetch(site: Site, target: str = "/v2/") -> bytes:
    """Send a request as a client on the agent does, and return the status line."""
    reader, writer = await asyncio.open_connection(site.listen.host, site.listen.port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost:5000\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0]
