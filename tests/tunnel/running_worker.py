"""A worker that runs while a test does, and clients on its agent."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields

import asyncssh

from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.tunnel.settings import TunnelSettings
from tunnelmgr.tunnel.worker import Worker

TWO = ("127.0.0.1", "127.0.0.2")
"""Stands for the two families of loopback, of which a test machine may lack one."""


@dataclass
class RunningWorker:
    """A running worker, and how it ended."""

    worker: Worker
    task: "asyncio.Task[None] | None" = None
    failure: Exception | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Run the worker, and keep the exception that it raises."""
        try:
            await self.worker.run()
        except Exception as failed:  # noqa: BLE001 - handed on by `end`
            self.failure = failed
        finally:
            self.over.set()

    async def end(self, within: float = 10.0) -> None:
        """Wait for the end, and raise the worker's exception."""
        async with asyncio.timeout(within):
            await self.over.wait()
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def running_worker(
    spec: TunnelSpec,
    settings: TunnelSettings,
    stale: Ends | None = None,
    rival: str = "",
    *,
    tests_key: bool = False,
) -> AsyncIterator[RunningWorker]:
    """Run a worker, at most until the end of the block; `rival` is another member that may still listen."""
    life = RunningWorker(Worker(OpenTunnel(spec.agent, 1, spec, FIRST, rival, tests_key), settings, stale))
    async with asyncio.TaskGroup() as tasks:
        life.task = tasks.create_task(life.run(), name="worker")
        try:
            yield life
        finally:
            life.task.cancel()


def with_probe_timeout(seconds: float, settings: TunnelSettings) -> TunnelSettings:
    """Return the settings with a probe timeout that does not follow from the interval."""

    class Changed(TunnelSettings):
        probe_timeout = seconds  # type: ignore[assignment]

    return Changed(**{each.name: getattr(settings, each.name) for each in fields(settings)})


def listens(endpoint: Endpoint) -> bool:
    """Return whether something accepts connections there."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((endpoint.host, endpoint.port)) == 0


async def ping(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as a client on the agent, and make sure that a session serves it."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    writer.write(b"ping")
    assert await asyncio.wait_for(reader.readexactly(4), 5) == b"ping"
    return reader, writer


def public_fingerprint(key: asyncssh.SSHKey | None) -> str:
    """Return a key's fingerprint."""
    assert key is not None
    return str(key.get_fingerprint())
