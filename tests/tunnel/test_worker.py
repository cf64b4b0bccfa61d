"""One life of one tunnel, observed by its events, against an sshd on loopback."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ssh.ssh_server import Sshd, forward, free_port, generate, public, running_tcp_server, until
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.test_admission import Sending
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import TunnelBound, TunnelDialled, TunnelProbed
from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import OpenTunnel
from tunnelmgr.core.tunnel import Endpoint, TunnelSpec
from tunnelmgr.dataplane import fair_queue
from tunnelmgr.dataplane.half_open import Ends
from tunnelmgr.errors import (
    ConnectionLostError,
    ExposedListenerError,
    HostKeyMismatchError,
    ImpostorListenerError,
    ListenRefusedError,
    ProbeTimeoutError,
)
from tunnelmgr.tunnel import prober
from tunnelmgr.tunnel.admission import MIN_SLOTS, Admission
from tunnelmgr.tunnel.prober import next_probe_time
from tunnelmgr.tunnel.settings import TunnelSettings
from tunnelmgr.tunnel.worker import Worker

TWO = ("127.0.0.1", "127.0.0.2")
"""Stands for the two families of loopback, of which a test machine may lack one."""


@dataclass
class Life:
    """A running worker, and how it ended."""

    worker: Worker
    task: "asyncio.Task[None] | None" = None
    failure: Exception | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def live(self) -> None:
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
async def alive(spec: TunnelSpec, settings: TunnelSettings, stale: Ends | None = None) -> AsyncIterator[Life]:
    """Run a worker, at most until the end of the block."""
    life = Life(Worker(OpenTunnel(spec.agent, 1, spec, FIRST), settings, stale))
    async with asyncio.TaskGroup() as tasks:
        life.task = tasks.create_task(life.live(), name="worker")
        try:
            yield life
        finally:
            life.task.cancel()


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


def public_print(key: asyncssh.SSHKey | None) -> str:
    """Return a key's fingerprint."""
    assert key is not None
    return str(key.get_fingerprint())


# --- coming up ---


async def test_a_tunnel_is_dialled_then_bound_then_probed(sshd: Sshd, harness: WorkerHarness) -> None:
    """A tunnel reports dialled, bound and probed in this order, each with its life."""
    both = forward(*TWO)
    async with alive(sshd.spec(both), harness.settings()):
        await harness.up()

    first = harness.events[:3]
    assert [type(event) for event in first] == [TunnelDialled, TunnelBound, TunnelProbed]
    assert {(event.agent, event.life) for event in first} == {("static:builder-1", 1)}  # type: ignore[union-attr]
    key = public_print(harness.login.key)
    assert harness.events[0] == TunnelDialled(sshd.agent().id, 1, "127.0.0.1", key, sshd.host_key)
    assert harness.bound == TunnelBound(sshd.agent().id, 1, both.listen)
    assert sshd.asked == list(both.listen)


async def test_a_client_on_the_agent_reaches_the_gate(sshd: Sshd, harness: WorkerHarness) -> None:
    """Bytes from a client on the agent reach the channel handler, and its answer the client."""
    one = forward()
    async with alive(sshd.spec(one), harness.settings()):
        await harness.up()
        reader, writer = await ping(one.listen[0])
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_probes_continue_at_every_interval(sshd: Sshd, harness: WorkerHarness) -> None:
    """Each probe reports its round trip."""
    async with alive(sshd.spec(forward()), harness.settings()):
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
    async with alive(sshd.spec(forward()), harness.settings(admission=admission)) as life:
        await until(lambda: admission._handshakes)
        assert life.worker._permit.placed
        assert sshd.logins_begun == 0
        others.pop().end()
        await harness.up()
        assert (admission._slots, admission._places) == (MIN_SLOTS - 1, MIN_SLOTS - 1)
        others.pop().end()


async def test_a_failed_dial_releases_everything(sshd: Sshd, harness: WorkerHarness) -> None:
    """A failed dial releases its place and its slot."""
    admission = Admission()
    async with alive(sshd.spec(forward(), keys=[public(generate())]), harness.settings(admission=admission)) as life:
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
        async with alive(sshd.spec(forward(), port=silent.port), settings) as life:
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
        stuck = [Life(Worker(OpenTunnel(spec.agent, 1, spec, FIRST), settings)) for _ in range(MIN_SLOTS)]
        stalling = [tasks.create_task(life.live(), name="stalls") for life in stuck]
        await until(lambda: admission._slots == MIN_SLOTS)

        async with alive(sshd.spec(forward()), settings):
            await harness.up()

        assert not any(life.over.is_set() for life in stuck)
        for task in stalling:
            task.cancel()


async def test_a_host_key_mismatch_ends_the_worker_before_any_event(sshd: Sshd, harness: WorkerHarness) -> None:
    """A host key mismatch is raised, and no event is reported."""
    async with alive(sshd.spec(forward(), keys=[public(generate())]), harness.settings()) as life:
        with pytest.raises(HostKeyMismatchError):
            await life.end()

    assert harness.events == []


# --- listeners ---


async def test_a_first_listener_that_is_refused_ends_the_tunnel(sshd: Sshd, harness: WorkerHarness) -> None:
    """If the first address is refused, the tunnel ends with ListenRefusedError and reports nothing as bound."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[0])
    async with alive(sshd.spec(both), harness.settings()) as life:
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
        async with alive(sshd.spec(one), harness.settings(), stale):
            await harness.up()


async def test_a_listener_that_stays_refused_after_the_reset_ends_the_tunnel(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """If the address stays refused after the reset, the tunnel ends and forgets the stale connection."""
    one = forward()
    sshd.refuses.add(one.listen[0])
    stale = Ends(("127.0.0.1", free_port()), ("127.0.0.1", free_port()))
    async with alive(sshd.spec(one), harness.settings(), stale) as life:
        with pytest.raises(ListenRefusedError):
            await life.end()

    assert len(sshd.asked) > 1
    assert life.worker.stale is None


async def test_a_refused_second_listener_is_reported_and_bound_later(sshd: Sshd, harness: WorkerHarness) -> None:
    """The tunnel is up without its second address, and binds it when it is free."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[1])
    async with alive(sshd.spec(both), harness.settings()):
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
        async with alive(sshd.spec(both), harness.settings()):
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
    async with alive(sshd.spec(both), harness.settings()):
        await harness.up(probes=2)

    assert harness.bound.conflicts == (str(both.listen[1]),)


async def test_an_exposed_listener_is_cancelled_at_once_and_ends_the_tunnel(sshd: Sshd, harness: WorkerHarness) -> None:
    """A listener beyond loopback is cancelled at once, and the tunnel ends without an event."""
    one = forward()
    sshd.exposes = True
    async with alive(sshd.spec(one), harness.settings()) as life:
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
        async with alive(sshd.spec(one), harness.settings()) as life:
            with pytest.raises(ExposedListenerError):
                await life.end()
            await asyncio.wait_for(refused.wait(), 5)

    assert harness.serving == 0


async def test_a_listener_that_is_exposed_later_ends_the_tunnel_too(sshd: Sshd, harness: WorkerHarness) -> None:
    """A second address that is bound later and exposed ends the tunnel."""
    both = forward(*TWO)
    sshd.refuses.add(both.listen[1])
    async with alive(sshd.spec(both), harness.settings()) as life:
        await harness.up()
        sshd.exposes = True
        sshd.refuses.clear()

        with pytest.raises(ExposedListenerError):
            await life.end()


# --- probes ---


async def test_probes_share_a_stream_and_regularly_open_a_new_one(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new stream is opened after `PROBES_PER_STREAM` probes, to show that the listener still accepts."""
    monkeypatch.setattr(prober, "PROBES_PER_STREAM", 4)
    async with alive(sshd.spec(forward()), harness.settings(probe_interval=0.02)):
        await harness.up(probes=4)
        assert harness.opened == 1
        await harness.up(probes=9)
        assert harness.opened == 3
        await until(lambda: harness.serving == 1)


async def test_a_probe_replaces_a_stream_that_has_ended(sshd: Sshd, harness: WorkerHarness) -> None:
    """A probe whose kept stream was closed opens its own, and the tunnel stays up."""
    harness.hangs_up = True
    async with alive(sshd.spec(forward()), harness.settings(probe_interval=0.02)):
        await harness.up(probes=5)
        assert harness.opened >= 5


async def test_a_drain_does_not_wait_for_the_probe_stream(sshd: Sshd, harness: WorkerHarness) -> None:
    """The kept probe stream is closed at once when the tunnel drains."""
    async with alive(sshd.spec(forward()), harness.settings(drain=60.0)) as life, asyncio.timeout(5):
        await harness.up()
        assert harness.serving == 1
        assert life.worker.drain()
        await life.end()
    assert harness.serving == 0


@given(
    agents=st.lists(st.text(min_size=1), min_size=1, max_size=5),
    now=st.floats(0, 1e6),
    interval=st.sampled_from([0.05, 1.0, 15.0, 60.0]),
)
def test_each_agent_has_its_own_probe_time_once_per_interval(agents: list[str], now: float, interval: float) -> None:
    """The next probe is at most an interval away, and the one after it exactly an interval later."""
    for agent in agents:
        first = next_probe_time(AgentId(agent), now, interval)
        second = next_probe_time(AgentId(agent), first + interval / 1000, interval)
        assert now < first <= now + interval * 1.000001
        assert second - first == pytest.approx(interval, abs=1e-3)


def test_a_fleet_that_came_at_once_is_spread_over_the_interval() -> None:
    """A thousand agents are spread evenly over the 30 probe times of a 15-second interval."""
    beats = Counter(next_probe_time(AgentId(f"ec2:i-{number:017x}"), 100.0, 15.0) for number in range(1000))

    assert len(beats) == 30
    assert max(beats.values()) < 3 * 1000 / 30


async def test_another_process_on_our_address_is_an_impostor(sshd: Sshd, harness: WorkerHarness) -> None:
    """An answer without our proof ends the tunnel, although sshd reported the address as bound."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\n\r\n{"agent": "static:builder-1", "proof": "0000"}')

    async with running_tcp_server(answer) as occupant:
        sshd.reroute = occupant
        async with alive(sshd.spec(forward()), harness.settings()) as life:
            with pytest.raises(ImpostorListenerError):
                await life.end()

    assert harness.of(TunnelProbed) == []


async def test_a_probe_that_is_not_answered_ends_the_tunnel_whatever_else_arrives(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """Other messages from the agent do not keep a tunnel up whose probe is not answered."""
    async with alive(sshd.spec(forward()), harness.settings()) as life, asyncio.TaskGroup() as tasks:
        await harness.up()
        sshd.answers.clear()
        drip = tasks.create_task(send_debug_messages(sshd.connection), name="drip")

        with pytest.raises(ProbeTimeoutError):
            await life.end(within=3)
        drip.cancel()


async def send_debug_messages(connection: asyncssh.SSHServerConnection) -> None:
    """Send debug messages, many within the time of a probe."""
    while True:
        connection.send_debug("still here")
        await asyncio.sleep(0.05)


async def test_a_gate_that_does_not_answer_ends_the_tunnel_too(sshd: Sshd, harness: WorkerHarness) -> None:
    """A probe that the gate does not answer ends the tunnel."""
    harness.silent = True
    async with alive(sshd.spec(forward()), harness.settings()) as life:
        with pytest.raises(ProbeTimeoutError):
            await life.end(within=3)


async def test_a_missing_permitopen_is_named_in_the_error(sshd: Sshd, harness: WorkerHarness) -> None:
    """If sshd refuses the probe's channel, the error names the `permitopen` option to add."""
    one = forward()
    sshd.reroute = Endpoint("127.0.0.1", one.listen[0].port + 1 if one.listen[0].port < 65535 else 1)
    async with alive(sshd.spec(one), harness.settings()) as life:
        with pytest.raises(ConnectionLostError, match=f'permitopen="{one.listen[0]}"'):
            await life.end()


async def test_a_raw_forward_is_up_when_the_agent_connects_to_it(sshd: Sshd, harness: WorkerHarness) -> None:
    """A raw forward is up when the agent's sshd can connect to it."""
    raw = forward(protocol="tcp")
    async with alive(sshd.spec(raw), harness.settings()):
        await harness.up(probes=2)


async def test_every_forward_is_probed(sshd: Sshd, harness: WorkerHarness) -> None:
    """A tunnel ends if any of its forwards does not answer its probe."""
    one, two = forward(), forward()
    async with alive(sshd.spec(one, two), harness.settings()) as life:
        await harness.up()
        assert harness.bound.held == one.listen + two.listen

        sshd.swallows.add(two.listen[0])
        with pytest.raises(ProbeTimeoutError):
            await life.end(within=4)


# --- the end ---


async def test_a_lost_connection_is_noticed_between_probes(sshd: Sshd, harness: WorkerHarness) -> None:
    """A lost connection ends the tunnel at once, long before the next probe."""
    async with alive(sshd.spec(forward()), harness.settings(probe_interval=60)) as life:
        await harness.up()
        sshd.cut()

        with pytest.raises(ConnectionLostError, match="was lost"):
            await life.end(within=2)


async def test_a_drain_lets_an_open_channel_finish(sshd: Sshd, harness: WorkerHarness) -> None:
    """A draining tunnel stops listening, serves its open channel to the end, and then ends."""
    one = forward()
    async with alive(sshd.spec(one), harness.settings()) as life:
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


async def test_a_drain_has_a_deadline(sshd: Sshd, harness: WorkerHarness) -> None:
    """A channel that does not end by the drain's deadline is aborted, and the tunnel ends."""
    one = forward()
    async with alive(sshd.spec(one), harness.settings(drain=0.2)) as life:
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
    async with alive(sshd.spec(one), harness.settings(drain=60)) as life:
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
    async with alive(sshd.spec(one), harness.settings()) as life:
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
    async with alive(sshd.spec(one), harness.settings()) as life:
        await harness.up()
        reader, writer = await asyncio.open_connection(one.listen[0].host, one.listen[0].port)
        writer.write(b"break")

        with pytest.raises(ExceptionGroup):
            await life.end()
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: not listens(one.listen[0]))


# --- many channels ---


def with_long_probe_timeout(settings: TunnelSettings) -> TunnelSettings:
    """Return the settings with a probe timeout of 10 s, for tests that keep both ends of the tunnel busy."""

    class Patient(TunnelSettings):
        probe_timeout = 10.0  # type: ignore[assignment]

    return Patient(**{each.name: getattr(settings, each.name) for each in fields(settings)})


async def test_no_more_channels_are_open_than_allowed(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 channel opens, 500 at a time, are limited, while the tunnel stays up and its probes are answered."""
    # The no-op budget would throttle this flood, depending on the speed of this machine.
    monkeypatch.setattr(fair_queue, "NO_OP_BURST", 60.0)
    one = forward()
    async with (
        alive(sshd.spec(one), with_long_probe_timeout(harness.settings(max_channels=16))) as life,
        asyncio.timeout(60),
    ):
        await harness.up()
        host, port = one.listen[0].host, one.listen[0].port
        opened: list[object] = []
        for _ in range(10):  # both ends live in this process, and a probe must have its turn
            opens = (sshd.connection.open_connection(host, port) for _ in range(500))
            opened += await asyncio.gather(*opens, return_exceptions=True)
        accepted = [each for each in opened if not isinstance(each, BaseException)]

        assert {type(each) for each in opened if isinstance(each, BaseException)} == {asyncssh.ChannelOpenError}
        # Probes do not count towards the limit: one channel may have taken the place of a probe, and is ended again.
        assert len(accepted) >= 15
        assert harness.serving <= 18
        await harness.up(len(harness.of(TunnelProbed)) + 2)
        await until(lambda: harness.serving <= 17)  # one is kept for probes

        for _, writer in accepted:
            writer.close()
        await until(lambda: life.worker._sessions._channels == 1)
        _, writer = await ping(one.listen[0])
        writer.close()


async def test_channels_that_end_make_room(sshd: Sshd, harness: WorkerHarness) -> None:
    """The number of channels decreases again however a channel ends."""
    one = forward()
    async with alive(sshd.spec(one), harness.settings(max_channels=2)) as life:
        await harness.up()
        for turn in range(20):
            _, writer = await ping(one.listen[0])
            if turn % 2:
                writer.transport.abort()
            else:
                writer.close()
            await until(lambda: life.worker._sessions._channels == 1)
