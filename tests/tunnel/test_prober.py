"""The probes of a tunnel: their times, their streams, and what an answer proves."""

import asyncio
from collections import Counter

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ssh.ssh_server import Sshd, forward, running_tcp_server
from tests.ssh.worker_harness import WorkerHarness
from tests.tunnel.running_worker import running_worker, with_probe_timeout
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import TunnelProbed
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ConnectionLostError, ImpostorListenerError, ProbeTimeoutError
from tunnelmgr.tunnel import prober
from tunnelmgr.tunnel.prober import next_probe_time
from tunnelmgr.tunnel.settings import TunnelSettings


async def test_probes_share_a_stream_and_regularly_open_a_new_one(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new stream is opened after `PROBES_PER_STREAM` probes, to show that the listener still accepts."""
    monkeypatch.setattr(prober, "PROBES_PER_STREAM", 4)
    async with running_worker(sshd.spec(forward()), harness.settings(probe_interval=0.02)):
        await harness.up(probes=4)
        assert harness.opened == 1
        await harness.up(probes=9)
        assert harness.opened == 3
        await until(lambda: harness.serving == 1)


async def test_later_probes_of_a_stream_need_no_answer(
    sshd: Sshd, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stream's first probe is answered; those that follow are proved by their arrival."""
    monkeypatch.setattr(prober, "PROBES_PER_STREAM", 4)
    harness.takes_arrivals = harness.waits_for_requests = True
    async with running_worker(sshd.spec(forward()), harness.settings(probe_interval=0.02)):
        await harness.up(probes=8)

        probes = len(harness.of(TunnelProbed))
        assert harness.opened == harness.proofs == -(-probes // 4)
        assert harness.arrivals == probes - harness.proofs


async def test_a_probe_replaces_a_stream_that_has_ended(sshd: Sshd, harness: WorkerHarness) -> None:
    """A probe whose kept stream was closed opens its own, and the tunnel stays up."""
    harness.hangs_up = True
    async with running_worker(sshd.spec(forward()), harness.settings(probe_interval=0.02)):
        await harness.up(probes=5)
        assert harness.opened >= 5


async def test_a_drain_does_not_wait_for_the_probe_stream(sshd: Sshd, harness: WorkerHarness) -> None:
    """The kept probe stream is closed at once when the tunnel drains."""
    async with running_worker(sshd.spec(forward()), harness.settings(drain=60.0)) as life, asyncio.timeout(5):
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
        async with running_worker(sshd.spec(forward()), harness.settings()) as life:
            with pytest.raises(ImpostorListenerError):
                await life.end()

    assert harness.of(TunnelProbed) == []


@pytest.fixture
def impatient(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> TunnelSettings:
    """Open a new stream for every probe, and return settings with which half a second without an answer ends it."""
    monkeypatch.setattr(prober, "PROBES_PER_STREAM", 1)
    return with_probe_timeout(0.5, harness.settings())


async def test_a_probe_that_is_not_answered_ends_the_tunnel_whatever_else_arrives(
    sshd: Sshd, harness: WorkerHarness, impatient: TunnelSettings
) -> None:
    """Other messages from the agent do not keep a tunnel up whose probe is not answered."""
    async with running_worker(sshd.spec(forward()), impatient) as life, asyncio.TaskGroup() as tasks:
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
        await asyncio.sleep(0.05)  # the drip is what is tested


async def test_a_gate_that_does_not_answer_ends_the_tunnel_too(
    sshd: Sshd, harness: WorkerHarness, impatient: TunnelSettings
) -> None:
    """A probe that the gate does not answer ends the tunnel."""
    harness.silent = True
    async with running_worker(sshd.spec(forward()), impatient) as life:
        with pytest.raises(ProbeTimeoutError):
            await life.end(within=3)


async def test_a_missing_permitopen_is_named_in_the_error(sshd: Sshd, harness: WorkerHarness) -> None:
    """If sshd refuses the probe's channel, the error names the `permitopen` option to add."""
    one = forward()
    sshd.reroute = Endpoint("127.0.0.1", one.listen[0].port + 1 if one.listen[0].port < 65535 else 1)
    async with running_worker(sshd.spec(one), harness.settings()) as life:
        with pytest.raises(ConnectionLostError, match=f'permitopen="{one.listen[0]}"'):
            await life.end()


async def test_a_raw_forward_is_up_when_the_agent_connects_to_it(sshd: Sshd, harness: WorkerHarness) -> None:
    """A raw forward is up when the agent's sshd can connect to it."""
    raw = forward(protocol="tcp")
    async with running_worker(sshd.spec(raw), harness.settings()):
        await harness.up(probes=2)


async def test_every_forward_is_probed(sshd: Sshd, harness: WorkerHarness, impatient: TunnelSettings) -> None:
    """A tunnel ends if any of its forwards does not answer its probe."""
    one, two = forward(), forward()
    async with running_worker(sshd.spec(one, two), impatient) as life:
        await harness.up()
        assert harness.bound.held == one.listen + two.listen

        sshd.swallows.add(two.listen[0])
        with pytest.raises(ProbeTimeoutError):
            await life.end(within=4)
