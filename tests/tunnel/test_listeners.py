"""The listeners of a tunnel: bound, refused, held by another process, or exposed."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, forward, free_port, running_tcp_server
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.running_worker import TWO, listens, ping, running_worker, with_probe_timeout
from tests.until import until
from tunnelmgr.core.events import TunnelBound, TunnelProbed
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.errors import ExposedListenerError, HeldElsewhereError, ListenRefusedError


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


@asynccontextmanager
async def answering(endpoint: Endpoint, body: str) -> AsyncIterator[asyncio.Server]:
    """Answer every request on an address with a JSON body, as another controller's gate would."""
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, endpoint.host, endpoint.port)
    async with server:
        yield server


RIVAL = '{"controller": "registry-2", "agent": "cloud:a"}'


async def test_all_addresses_are_held_or_none_while_another_member_answers(sshd: Sshd, harness: WorkerHarness) -> None:
    """If another member keeps the second address, the first one is given up: nobody is served by two members."""
    both = forward(*TWO)
    async with (
        answering(both.listen[1], RIVAL),
        running_worker(sshd.spec(both), harness.settings(), rival="registry-2") as life,
    ):
        with pytest.raises(HeldElsewhereError, match="registry-2"):
            await life.end()
        await until(lambda: not listens(both.listen[0]))

    assert harness.of(TunnelBound) == []


async def test_an_address_that_the_other_member_lets_go_is_bound_before_the_tunnel_is_up(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """A handover in which the first address comes free a moment earlier ends with both."""
    both = forward(*TWO)
    async with (
        answering(both.listen[1], RIVAL) as other,
        running_worker(sshd.spec(both), harness.settings(), rival="registry-2"),
    ):
        await until(lambda: sshd.asked.count(both.listen[1]) >= 2)
        other.close()
        await harness.up()

        assert (harness.of(TunnelBound)[0].held, harness.bound.refused) == (both.listen, ())


@pytest.mark.parametrize("body", ['{"controller": "registry-1"}', "{}", "[", ""])
async def test_another_process_on_a_second_address_is_tolerated_in_a_cluster_too(
    sshd: Sshd, harness: WorkerHarness, body: str
) -> None:
    """Only an answer of the other member makes the tunnel give way; a foreign process is reported."""
    both = forward(*TWO)
    async with (
        answering(both.listen[1], body),
        running_worker(sshd.spec(both), harness.settings(), rival="registry-2"),
    ):
        await harness.up()

        assert harness.bound.conflicts == (str(both.listen[1]),)


async def test_a_second_address_on_which_nobody_listens_is_missing_only(sshd: Sshd, harness: WorkerHarness) -> None:
    """An agent without IPv6 has no other member's listener there."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[1])
    async with running_worker(sshd.spec(both), harness.settings(), rival="registry-2"):
        await harness.up()

    assert (harness.bound.refused, harness.bound.conflicts) == (both.listen[1:], ())


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
