"""The listeners of a tunnel: bound, refused, held by another process, or exposed."""

import asyncio
import socket

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, forward, free_port, running_tcp_server
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.running_worker import TWO, listens, ping, running_worker, with_probe_timeout
from tests.until import until
from tunnelmgr.core.events import TunnelBound, TunnelProbed
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.errors import ExposedListenerError, ListenRefusedError


async def test_a_first_listener_that_is_refused_ends_the_tunnel(sshd: Sshd, harness: WorkerHarness) -> None:
    """If the first address is refused, the tunnel ends with ListenRefusedError and reports nothing as bound."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[0])
    async with running_worker(sshd.spec(both), harness.settings()) as life:
        with pytest.raises(ListenRefusedError, match="permitlisten"):
            await life.end()

    assert harness.of(TunnelBound) == []


async def test_a_listener_that_a_lost_connection_holds_is_bound_after_its_reset(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """A refused first address is bound in the same life after the stale connection is reset."""
    one = forward()
    sshd.refuses.add(one.listen[0])

    async def reset(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        sshd.refuses.clear()

    async with running_tcp_server(reset) as agents_kernel:
        stale = Ends(("127.0.0.1", free_port()), (agents_kernel.host, agents_kernel.port))
        async with running_worker(sshd.spec(one), harness.settings(), stale):
            await harness.up()


async def test_a_listener_that_stays_refused_after_the_reset_ends_the_tunnel(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """If the address stays refused after the reset, the tunnel ends and forgets the stale connection."""
    one = forward()
    sshd.refuses.add(one.listen[0])
    stale = Ends(("127.0.0.1", free_port()), ("127.0.0.1", free_port()))
    async with running_worker(sshd.spec(one), harness.settings(), stale) as life:
        with pytest.raises(ListenRefusedError):
            await life.end()

    assert len(sshd.asked) > 1
    assert life.worker.stale is None


async def test_a_refused_second_listener_is_reported_and_bound_later(sshd: Sshd, harness: WorkerHarness) -> None:
    """The tunnel is up without its second address, and binds it when it is free."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[1])
    async with running_worker(sshd.spec(both), harness.settings()):
        await harness.up()
        assert (harness.bound.held, harness.bound.refused) == (both.listen[:1], both.listen[1:])
        assert harness.bound.conflicts == ()

        sshd.refuses.clear()
        await until(lambda: harness.bound.held == both.listen)
        assert harness.bound.refused == ()
        _, writer = await ping(both.listen[1])
        writer.close()


@pytest.mark.usefixtures("ignore_resource_warnings")
async def test_another_process_on_a_refused_address_is_found(sshd: Sshd, harness: WorkerHarness) -> None:
    """A process that answers on a refused address is reported until it is gone."""
    both = forward(*TWO)
    with socket.socket() as occupant:
        occupant.bind((both.listen[1].host, both.listen[1].port))
        occupant.listen()
        async with running_worker(sshd.spec(both), harness.settings()):
            await harness.up()
            assert harness.bound.conflicts == (str(both.listen[1]),)

            occupant.close()
            await until(lambda: harness.bound.held == both.listen)
            assert harness.bound.conflicts == ()


@pytest.mark.usefixtures("ignore_resource_warnings")
async def test_another_process_that_accepts_no_connection_is_reported(sshd: Sshd, harness: WorkerHarness) -> None:
    """A process that holds a port without accepting is reported, and the tunnel stays up."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[1])
    sshd.swallows.add(both.listen[1])
    async with running_worker(sshd.spec(both), with_probe_timeout(0.5, harness.settings())):
        await harness.up(probes=2)

    assert harness.bound.conflicts == (str(both.listen[1]),)


async def test_an_exposed_listener_is_cancelled_at_once_and_ends_the_tunnel(sshd: Sshd, harness: WorkerHarness) -> None:
    """A listener beyond loopback is cancelled at once, and the tunnel ends without an event."""
    one = forward()
    sshd.exposes = True
    async with running_worker(sshd.spec(one), harness.settings()) as life:
        with pytest.raises(ExposedListenerError, match="GatewayPorts no"):
            await life.end()
        await until(lambda: sshd.cancelled == [one.listen[0]])
        await until(lambda: not listens(one.listen[0]))

    assert harness.of(TunnelBound) == harness.of(TunnelProbed) == []


async def test_no_channel_is_served_through_an_exposed_listener(sshd: Sshd, harness: WorkerHarness) -> None:
    """A channel that arrives before an exposed listener is cancelled is refused."""
    one = forward()
    sshd.exposes = True
    refused = asyncio.Event()

    async def knock() -> None:
        with pytest.raises(asyncssh.ChannelOpenError):
            await sshd.connection.open_connection(one.listen[0].host, one.listen[0].port)
        refused.set()

    async with asyncio.TaskGroup() as tasks:
        sshd.on_listen = lambda: tasks.create_task(knock())
        async with running_worker(sshd.spec(one), harness.settings()) as life:
            with pytest.raises(ExposedListenerError):
                await life.end()
            await asyncio.wait_for(refused.wait(), 5)

    assert harness.serving == 0


async def test_a_listener_that_is_exposed_later_ends_the_tunnel_too(sshd: Sshd, harness: WorkerHarness) -> None:
    """A second address that is bound later and exposed ends the tunnel."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[1])
    async with running_worker(sshd.spec(both), harness.settings()) as life:
        await harness.up()
        sshd.exposes = True
        sshd.refuses.clear()

        with pytest.raises(ExposedListenerError):
            await life.end()
