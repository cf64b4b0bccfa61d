"""A stop: the transfers that are in progress end while all tunnels continue; then the tunnels drain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.ssh.ssh_server import Sshd, forward
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.running_worker import listens, ping
from tests.until import until
from tunnelmgr.core.events import TunnelEnded
from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.tunnel.supervisor import Supervisor

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Stopping:
    """A tunnel with an idle channel, and what the tests do with it."""

    supervisor: Supervisor
    spec: TunnelSpec
    harness: WorkerHarness
    tasks: asyncio.TaskGroup
    idle: Client

    @property
    def endpoint(self) -> Endpoint:
        """Where the agent's clients connect."""
        return self.spec.forwards[0].listen[0]

    async def request(self) -> Client:
        """Begin a request that is in progress until more is sent."""
        before = self.harness.holding
        reader, writer = await asyncio.open_connection(self.endpoint.host, self.endpoint.port)
        writer.write(b"hold")
        await until(lambda: self.harness.holding == before + 1)
        return reader, writer

    async def stop(self, seconds: float = 60) -> "asyncio.Task[None]":
        """Begin to wait for the transfers in progress."""
        waiting = self.tasks.create_task(self.supervisor.finish_transfers(seconds), name="stop")
        await asyncio.sleep(0)
        return waiting

    def drain(self) -> None:
        """Drain the tunnel, as the controller does next."""
        self.supervisor.close(CloseTunnel(self.spec.agent, 1, Manner.DRAIN))

    async def ended(self) -> None:
        """Wait until the tunnel has ended."""
        await until(lambda: any(isinstance(event, TunnelEnded) for event in self.harness.events))


@asynccontextmanager
async def stopping(sshd: Sshd, harness: WorkerHarness) -> AsyncIterator[Stopping]:
    """Run a tunnel with an idle channel; at the end, revoke it."""
    harness.waits_for_requests = True
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(20):
        supervisor = Supervisor(tasks, harness.settings(probe_interval=60, drain=60))
        supervisor.open(OpenTunnel(spec.agent, 1, spec, FIRST))
        await harness.up()
        idle = await ping(spec.forwards[0].listen[0])
        yield Stopping(supervisor, spec, harness, tasks, idle)
        supervisor.close(CloseTunnel(spec.agent, 1, Manner.REVOKE))
        idle[1].close()


async def echo(client: Client, data: bytes) -> bytes:
    """Send data, and return what comes back until the channel ends."""
    reader, writer = client
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


async def test_without_a_transfer_in_progress_a_stop_waits_for_nothing(sshd: Sshd, harness: WorkerHarness) -> None:
    """An idle channel is not waited for, and stays open until the drain."""
    async with stopping(sshd, harness) as stop:
        await (await stop.stop())
        reader, writer = stop.idle
        writer.write(b"next")

        assert await reader.readexactly(4) == b"next"


async def test_others_are_served_until_the_transfers_in_progress_have_ended(sshd: Sshd, harness: WorkerHarness) -> None:
    """The listener stays, new clients are served, and the wait ends when the client of before has everything."""
    async with stopping(sshd, harness) as stop:
        before = await stop.request()
        waiting = await stop.stop()
        _, other = await ping(stop.endpoint)
        other.close()
        still_waiting = not waiting.done()

        assert await echo(before, b"ing") == b"holding"
        await waiting

        assert still_waiting
        assert listens(stop.endpoint)


async def test_transfers_that_begin_during_a_stop_are_not_waited_for_but_may_finish(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """The wait ends although a later transfer continues; the drain closes the listener and lets that one finish."""
    async with stopping(sshd, harness) as stop:
        before = await stop.request()
        waiting = await stop.stop()
        later = await stop.request()
        await echo(before, b"ing")
        await waiting
        stop.drain()
        await until(lambda: not listens(stop.endpoint))

        assert await echo(later, b"ing") == b"holding"
        await stop.ended()


async def test_a_stop_waits_for_transfers_until_its_deadline(sshd: Sshd, harness: WorkerHarness) -> None:
    """At the deadline the wait ends, and nothing is left of it for the drain, which cuts the transfer."""
    async with stopping(sshd, harness) as stop:
        before = await stop.request()
        await (await stop.stop(0.2))

        stop.drain()
        await stop.ended()

        assert await echo(before, b"") == b""


async def test_a_drain_has_only_what_is_left_of_a_stops_deadline(sshd: Sshd, harness: WorkerHarness) -> None:
    """A transfer that began during the stop is cut at the stop's deadline, long before a drain's own."""
    async with stopping(sshd, harness) as stop:
        before = await stop.request()
        waiting = await stop.stop(1)
        later = await stop.request()
        await echo(before, b"ing")
        await waiting

        stop.drain()
        await stop.ended()

        assert await echo(later, b"") == b""


async def test_a_lost_connection_ends_the_wait_for_its_transfers(sshd: Sshd, harness: WorkerHarness) -> None:
    """A transfer whose tunnel is lost is not waited for."""
    async with stopping(sshd, harness) as stop:
        _, writer = await stop.request()
        waiting = await stop.stop()

        sshd.cut()
        await waiting
        writer.close()
