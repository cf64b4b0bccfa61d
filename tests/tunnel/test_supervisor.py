"""Workers in tasks that fail alone, each of whose ends is reported exactly once."""

import asyncio
from dataclasses import replace

import pytest

from tests.ssh.ssh_server import Sshd, forward, free_port, generate, public, running_sshd, running_tcp_server
from tests.ssh.worker_harness import WorkerHarness
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.events import TunnelDialled, TunnelEnded, TunnelProbed
from tunnelmgr.core.failure import Failure
from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.core.tunnel import Phase, TunnelSpec
from tunnelmgr.errors import Pace
from tunnelmgr.tunnel.supervisor import MAX_STALE_CONNECTIONS, Supervisor


def opening(spec: TunnelSpec, life: int = 1) -> OpenTunnel:
    """Return the action that opens a tunnel."""
    return OpenTunnel(spec.agent, life, spec, FIRST)


def closing(spec: TunnelSpec, manner: Manner, life: int = 1) -> CloseTunnel:
    """Return the action that closes it."""
    return CloseTunnel(spec.agent, life, manner)


def ended(harness: WorkerHarness) -> list[TunnelEnded]:
    """Return the reported ends."""
    return [event for event in harness.events if isinstance(event, TunnelEnded)]


@pytest.mark.parametrize("manner", list(Manner))
async def test_a_tunnel_that_was_asked_to_end_ends_without_a_failure(
    sshd: Sshd, harness: WorkerHarness, manner: Manner
) -> None:
    """A drained or revoked tunnel reports its end once, without a failure, and the agent may have another one."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings())
        supervisor.open(opening(spec))
        await harness.up()
        supervisor.close(closing(spec, manner))
        await until(lambda: ended(harness))
        supervisor.close(closing(spec, manner))
        supervisor.open(opening(spec, life=2))
        supervisor.close(closing(spec, Manner.REVOKE, life=2))

    assert ended(harness) == [TunnelEnded(spec.agent, 1, None), TunnelEnded(spec.agent, 2, None)]


async def test_a_failure_is_reported_with_code_pace_and_message(sshd: Sshd, harness: WorkerHarness) -> None:
    """The end of a failed tunnel has the error's code, pace and message."""
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings())
        supervisor.open(opening(sshd.spec(forward(), keys=[])))

    (end,) = ended(harness)
    assert end.failure is not None
    assert (end.failure.code, end.failure.retry) == ("host-key-mismatch", Pace.NEVER)
    assert "host key mismatch" in end.failure.message


async def test_a_worker_that_is_cancelled_before_its_first_step_reports_its_end(
    sshd: Sshd, harness: WorkerHarness
) -> None:
    """A task that never ran reports its end too."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings())
        supervisor.open(opening(spec))
        supervisor.close(closing(spec, Manner.REVOKE))

    assert harness.events == [TunnelEnded(spec.agent, 1, None)]
    assert sshd.connections == []


async def test_a_drain_does_not_wait_for_a_worker_that_is_dialling(sshd: Sshd, harness: WorkerHarness) -> None:
    """A drain ends a worker that is dialling at once, because it has nothing to finish."""

    async def send_nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with running_tcp_server(send_nothing) as endpoint:
        spec = sshd.spec(forward(), port=endpoint.port)
        # With a login timeout and a drain far longer than the deadline, only an immediate end is in time.
        settings = harness.settings(login=replace(harness.login, connect_timeout=60.0), drain=60.0)
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
            supervisor = Supervisor(tasks, settings)
            supervisor.open(opening(spec))
            await asyncio.sleep(0)
            supervisor.close(closing(spec, Manner.DRAIN))
            await until(lambda: ended(harness))

    assert ended(harness) == [TunnelEnded(spec.agent, 1, None)]


async def test_a_drain_can_be_cut_short(sshd: Sshd, harness: WorkerHarness) -> None:
    """A tunnel that drains can be revoked."""
    one = forward()
    spec = sshd.spec(one)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        supervisor = Supervisor(tasks, harness.settings(drain=60))
        supervisor.open(opening(spec))
        await harness.up()
        reader, writer = await asyncio.open_connection(one.listen[0].host, one.listen[0].port)
        writer.write(b"ping")
        await reader.readexactly(4)
        supervisor.close(closing(spec, Manner.DRAIN))
        await until(lambda: sshd.cancelled)
        assert ended(harness) == []

        supervisor.close(closing(spec, Manner.REVOKE))
        await until(lambda: ended(harness))
        writer.close()

    assert harness.cancelled >= 1


async def test_a_close_of_an_earlier_life_does_nothing(sshd: Sshd, harness: WorkerHarness) -> None:
    """A close for an earlier life, or for an agent without a worker, does nothing."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings())
        supervisor.close(closing(spec, Manner.REVOKE))
        supervisor.open(opening(spec, life=2))
        supervisor.close(closing(spec, Manner.REVOKE, life=1))
        await harness.up()
        supervisor.close(closing(spec, Manner.REVOKE, life=2))

    assert [end.life for end in ended(harness)] == [2]


async def test_no_agent_has_two_workers(sshd: Sshd, harness: WorkerHarness) -> None:
    """Opening a second tunnel to an agent is a programming error and raises AssertionError."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings())
        supervisor.open(opening(spec))
        with pytest.raises(AssertionError):
            supervisor.open(opening(spec, life=2))
        supervisor.close(closing(spec, Manner.REVOKE))


async def test_an_internal_error_ends_that_tunnel_only(sshd: Sshd, harness: WorkerHarness) -> None:
    """An internal error ends one tunnel, which may be tried again, and no other tunnel."""
    broken, well = forward(), forward()
    async with running_sshd(Sshd(generate(), sshd.accepts)) as second:
        first_spec = sshd.spec(broken)
        second_spec = second.spec(well)._replace(agent=AgentId("static:builder-2"))
        async with asyncio.TaskGroup() as tasks:
            supervisor = Supervisor(tasks, harness.settings())
            supervisor.open(opening(first_spec))
            supervisor.open(opening(second_spec))
            await harness.up(probes=4)

            harness.breaks = True
            _, writer = await asyncio.open_connection(broken.listen[0].host, broken.listen[0].port)
            writer.write(b"break")
            await until(lambda: ended(harness))
            writer.close()
            harness.breaks = False

            (end,) = ended(harness)
            assert end.agent == first_spec.agent
            assert end.failure is not None
            assert (end.failure.code, end.failure.retry) == ("internal", Pace.SOON)
            await harness.up(probes=len(harness.of(TunnelProbed)) + 2)
            supervisor.close(closing(second_spec, Manner.REVOKE))


async def test_new_settings_apply_to_later_workers(sshd: Sshd, harness: WorkerHarness) -> None:
    """Replaced settings apply to the next dial, and not to tunnels that are up."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings())
        supervisor.open(opening(spec))
        await harness.up()
        supervisor.settings = harness.settings(login=replace(harness.login, key=generate()))
        supervisor.close(closing(spec, Manner.DRAIN))
        await until(lambda: ended(harness))
        supervisor.open(opening(spec, life=2))
        await until(lambda: len(ended(harness)) == 2)

    failure = ended(harness)[1].failure
    assert failure is not None
    assert (failure.code, failure.retry) == ("authentication", Pace.SLOW)


async def test_an_unreachable_agent_is_reported_with_its_address(sshd: Sshd, harness: WorkerHarness) -> None:
    """A dial that is refused reports `unreachable` with the address, to be tried again soon."""
    async with asyncio.TaskGroup() as tasks:
        Supervisor(tasks, harness.settings()).open(opening(sshd.spec(forward(), port=free_port())))

    assert harness.of(TunnelDialled) == []
    (end,) = ended(harness)
    assert isinstance(end.failure, Failure)
    assert (end.failure.code, end.failure.retry) == ("unreachable", Pace.SOON)
    assert "127.0.0.1" in end.failure.message
    assert Phase.UP.value not in end.failure.message


async def test_the_next_life_gets_the_lost_connection(sshd: Sshd, harness: WorkerHarness) -> None:
    """A life that fails before binding passes the lost connection on; a bounded number is remembered."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings())
        supervisor.open(opening(spec))
        await harness.up()
        sshd.cut()
        await until(lambda: ended(harness))
        stale = supervisor._stale[spec.agent]
        assert stale.theirs == ("127.0.0.1", sshd.port)

        supervisor.open(opening(sshd.spec(forward(), keys=[public(generate())]), life=2))
        await until(lambda: len(ended(harness)) == 2)
        assert supervisor._stale == {spec.agent: stale}

        supervisor._stale |= {AgentId(f"static:{number}"): stale for number in range(MAX_STALE_CONNECTIONS)}
        supervisor.open(opening(sshd.spec(forward(), keys=[public(generate())]), life=3))
        await until(lambda: len(ended(harness)) == 3)
        assert len(supervisor._stale) == MAX_STALE_CONNECTIONS
