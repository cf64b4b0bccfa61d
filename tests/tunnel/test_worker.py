"""One life of one tunnel, observed by its events, against an sshd on loopback: its start and its end."""

import asyncio
from contextlib import suppress

import pytest

from tests.ssh.ssh_server import Sshd, forward, generate, public, running_tcp_server
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.running_worker import TWO, RunningWorker, listens, ping, public_fingerprint, running_worker
from tests.tunnel.test_admission import Sending
from tests.until import until
from tunnelmgr.core.events import TunnelBound, TunnelDialled, TunnelProbed
from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.dataplane import channel as dataplane_channel
from tunnelmgr.errors import ConnectionLostError, HostKeyMismatchError
from tunnelmgr.tunnel.admission import MIN_SLOTS, Admission
from tunnelmgr.tunnel.worker import Worker


async def test_a_tunnel_is_dialled_then_bound_then_probed(sshd: Sshd, harness: WorkerHarness) -> None:
    """A tunnel reports dialled, bound and probed in this order, each with its life."""
    both = forward(*TWO)
    async with running_worker(sshd.spec(both), harness.settings()):
        await harness.up()

    first = harness.events[:3]
    assert [type(event) for event in first] == [TunnelDialled, TunnelBound, TunnelProbed]
    assert {(event.agent, event.life) for event in first} == {("static:builder-1", 1)}  # type: ignore[union-attr]
    key = public_fingerprint(harness.login.key)
    dialled = harness.events[0]
    assert isinstance(dialled, TunnelDialled)
    assert dialled == TunnelDialled(sshd.agent().id, 1, "127.0.0.1", key, sshd.host_key)
    assert 0 < dialled.took < 10
    assert harness.bound == TunnelBound(sshd.agent().id, 1, both.listen)
    assert sshd.asked == list(both.listen)


async def test_a_client_on_the_agent_reaches_the_gate(sshd: Sshd, harness: WorkerHarness) -> None:
    """Bytes from a client on the agent reach the channel handler, and its answer the client."""
    one = forward()
    async with running_worker(sshd.spec(one), harness.settings()):
        await harness.up()
        reader, writer = await ping(one.listen[0])
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_probes_continue_at_every_interval(sshd: Sshd, harness: WorkerHarness) -> None:
    """Each probe reports its round trip."""
    async with running_worker(sshd.spec(forward()), harness.settings()):
        await harness.up(probes=4)

    assert all(0 < event.took < 1 for event in harness.of(TunnelProbed) if isinstance(event, TunnelProbed))


async def test_handshakes_wait_for_a_slot(sshd: Sshd, harness: WorkerHarness) -> None:
    """A handshake waits for a slot, and a tunnel that is up holds neither slot nor place."""
    admission = Admission()
    others = [admission.permit() for _ in range(MIN_SLOTS)]
    for other in others:
        await other.acquire_place()
        await other.acquire_slot(Sending())
    admission._busy = True
    async with running_worker(sshd.spec(forward()), harness.settings(admission=admission)) as life:
        await until(lambda: admission._handshakes)
        assert life.worker._permit.placed
        assert sshd.logins_started == 0
        others.pop().end()
        await harness.up()
        assert (admission._slots, admission._places) == (MIN_SLOTS - 1, MIN_SLOTS - 1)
        others.pop().end()


async def test_a_failed_dial_releases_everything(sshd: Sshd, harness: WorkerHarness) -> None:
    """A failed dial releases its place and its slot."""
    admission = Admission()
    async with running_worker(
        sshd.spec(forward(), keys=[public(generate())]), harness.settings(admission=admission)
    ) as life:
        with pytest.raises(HostKeyMismatchError):
            await life.end()

    assert (admission._slots, admission._places, admission._ahead) == (0, 0, 0)


async def test_an_agent_that_accepts_and_stays_silent_takes_a_place_and_no_slot(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """A silent agent holds a place and no slot, and nothing once it is cancelled."""
    admission = Admission()

    async def send_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with running_tcp_server(send_nothing) as silent:
        settings = harness.settings(admission=admission)
        async with running_worker(sshd.spec(forward(), port=silent.port), settings) as life:
            await until(lambda: admission._places == 1 and admission._ahead == 0)
            assert admission._slots == 0
            assert life.task is not None
            life.task.cancel()
            await life.over.wait()

    assert admission._places == 0


async def test_a_server_that_stops_within_the_handshake_loses_its_slot_to_the_next(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """A server that sends only its identification string does not block other handshakes."""
    admission = Admission()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-slow\r\n")
        await reader.read()

    async with running_tcp_server(greet) as slow, asyncio.TaskGroup() as tasks:
        spec, settings = sshd.spec(forward(), port=slow.port), harness.settings(admission=admission)
        stuck = [RunningWorker(Worker(OpenTunnel(spec.agent, 1, spec, FIRST), settings)) for _ in range(MIN_SLOTS)]
        stalling = [tasks.create_task(life.run(), name="stalls") for life in stuck]
        await until(lambda: admission._slots == MIN_SLOTS)

        async with running_worker(sshd.spec(forward()), settings):
            await harness.up()

        assert not any(life.over.is_set() for life in stuck)
        for task in stalling:
            task.cancel()


async def test_a_host_key_mismatch_ends_the_worker_before_any_event(sshd: Sshd, harness: WorkerHarness) -> None:
    """A host key mismatch is raised, and no event is reported."""
    async with running_worker(sshd.spec(forward(), keys=[public(generate())]), harness.settings()) as life:
        with pytest.raises(HostKeyMismatchError):
            await life.end()

    assert harness.events == []


async def test_a_lost_connection_is_noticed_between_probes(sshd: Sshd, harness: WorkerHarness) -> None:
    """A lost connection ends the tunnel at once, long before the next probe."""
    async with running_worker(sshd.spec(forward()), harness.settings(probe_interval=60)) as life:
        await harness.up()
        sshd.cut()

        with pytest.raises(ConnectionLostError, match="was lost"):
            await life.end(within=2)


async def test_a_drain_lets_an_open_channel_finish(sshd: Sshd, harness: WorkerHarness) -> None:
    """A draining tunnel stops listening, serves its open channel to the end, and then ends."""
    one = forward()
    async with running_worker(sshd.spec(one), harness.settings()) as life:
        await harness.up()
        reader, writer = await ping(one.listen[0])

        life.worker.drain()
        await until(lambda: not listens(one.listen[0]))
        writer.write(b"more")
        assert await reader.readexactly(4) == b"more"
        assert not life.over.is_set()

        writer.close()
        await life.end(within=3)
    assert sshd.cancelled == [one.listen[0]]
    assert harness.cancelled == 0
    assert life.worker.stale is None, "the agent's sshd holds nothing of an orderly end"


async def test_a_drain_serves_what_the_agent_opened_before_it_knew(sshd: Sshd, harness: WorkerHarness) -> None:
    """A connection that sshd accepted before it had the end of the forward gets its answer, also to a late request."""
    one = forward()
    harness.waits_for_requests = True
    async with running_worker(sshd.spec(one), harness.settings()) as life:
        await harness.up()
        fresh, fresh_writer = await asyncio.open_connection(one.listen[0].host, one.listen[0].port)
        await until(lambda: harness.serving == 2)  # one is kept for probes

        life.worker.drain()
        crossing, crossing_writer = await sshd.connection.open_connection(one.listen[0].host, one.listen[0].port)
        await until(lambda: not listens(one.listen[0]))
        fresh_writer.write(b"late")
        crossing_writer.write(b"crossing")

        assert await fresh.read(100) == b"late"
        assert await crossing.read(100) == b"crossing"
        await life.end(within=3)
        fresh_writer.close()
        crossing_writer.close()


async def test_a_drain_ends_a_silent_fresh_channel(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that connects and sends nothing holds up the end of the tunnel for a moment only."""
    monkeypatch.setattr(dataplane_channel, "FIRST_REQUEST_SECONDS", 0.1)
    one = forward()
    harness.waits_for_requests = True
    async with running_worker(sshd.spec(one), harness.settings(drain=60)) as life:
        await harness.up()
        silent, writer = await asyncio.open_connection(one.listen[0].host, one.listen[0].port)
        await until(lambda: harness.serving == 2)

        life.worker.drain()
        await life.end(within=3)

        assert await silent.read() == b""
        writer.close()


async def test_a_drain_has_a_deadline(sshd: Sshd, harness: WorkerHarness) -> None:
    """A channel that does not end by the drain's deadline is aborted, and the tunnel ends."""
    one = forward()
    async with running_worker(sshd.spec(one), harness.settings(drain=0.2)) as life:
        await harness.up()
        reader, writer = await ping(one.listen[0])

        life.worker.drain()
        await life.end(within=5)

        assert harness.serving == 0
        assert await reader.read() == b""
        writer.close()


async def test_a_connection_lost_while_draining_ends_the_drain(sshd: Sshd, harness: WorkerHarness) -> None:
    """A drain ends at once if the connection is lost."""
    one = forward()
    async with running_worker(sshd.spec(one), harness.settings(drain=60)) as life:
        await harness.up()
        _, writer = await ping(one.listen[0])
        life.worker.drain()
        await until(lambda: not listens(one.listen[0]))

        sshd.cut()
        await life.end(within=3)
        writer.close()


async def test_cancelling_a_worker_revokes_at_once(sshd: Sshd, harness: WorkerHarness) -> None:
    """Cancelling a worker cancels every session and aborts the connection."""
    one = forward()
    async with running_worker(sshd.spec(one), harness.settings()) as life:
        await harness.up()
        clients = [await ping(one.listen[0]) for _ in range(3)]
        assert life.task is not None

        life.task.cancel()
        await asyncio.wait_for(life.over.wait(), 2)
        await until(lambda: not listens(one.listen[0]))
        for reader, writer in clients:
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 2) == b""
            writer.close()

    assert harness.cancelled >= 3
    assert harness.serving == 0


@pytest.mark.usefixtures("ignore_resource_warnings")
async def test_an_error_in_a_session_ends_the_worker_and_its_connection(sshd: Sshd, harness: WorkerHarness) -> None:
    """An exception that escapes a session, which is a bug, ends the whole tunnel."""
    one = forward()
    harness.breaks = True
    async with running_worker(sshd.spec(one), harness.settings()) as life:
        await harness.up()
        reader, writer = await asyncio.open_connection(one.listen[0].host, one.listen[0].port)
        writer.write(b"break")

        with pytest.raises(ExceptionGroup):
            await life.end()
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: not listens(one.listen[0]))
