"""An ended tunnel's memory is freed at its end, without a garbage collection."""

import asyncio
import gc
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import asyncssh
import pytest

from lab.gate_stand_ins import gate_with
from tests.ssh.ssh_server import Sshd, forward, generate, public, running_tcp_server
from tests.ssh.worker_harness import WorkerHarness
from tests.until import until
from tunnelmgr.core.events import TunnelEnded
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.ports import AgentChannel
from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.core.tunnel import Endpoint, Forward, TunnelSpec
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.fast_path import fast_path_status
from tunnelmgr.dataplane.stream import Stream
from tunnelmgr.dataplane.transport import SshTransport
from tunnelmgr.errors import UnreachableError
from tunnelmgr.gate.caller import Caller
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.ssh.client import SshConnection
from tunnelmgr.ssh.host_key_scan import scan_host_key
from tunnelmgr.ssh.peer import Peer
from tunnelmgr.tunnel.proof import Prover
from tunnelmgr.tunnel.supervisor import Supervisor
from tunnelmgr.tunnel.worker import Worker

OURS = (Worker, SshConnection, asyncssh.SSHClientConnection, Peer, SshTransport, Stream, ForwardedChannel)


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    """Disable garbage collection during the test, after a collection of what earlier tests left."""
    fast_path_status()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held() -> Counter[str]:
    """Count the objects of a tunnel by their class."""
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, OURS))


async def run_and_end(sshd: Sshd, harness: WorkerHarness, how: str) -> None:
    """Bring a tunnel up with a client on it, and end it."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings(drain=0.1))
        supervisor.open(OpenTunnel(spec.agent, 1, spec, FIRST))
        await harness.up()
        port = spec.forwards[0].listen[0].port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"ping")
        await reader.readexactly(4)
        match how:
            case "cut":
                sshd.cut()
            case "reset":
                # Without lingering, the end is an RST (socket(7), SO_LINGER), which is an error to the next read.
                linger = struct.pack("ii", 1, 0)
                sshd.connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sshd.cut()
            case "silent":
                harness.silent = True
            case _:
                supervisor.close(CloseTunnel(spec.agent, 1, Manner.DRAIN if how == "drained" else Manner.REVOKE))
        await until(lambda: harness.of(TunnelEnded))
        writer.close()
    harness.events.clear()


@pytest.mark.parametrize("how", ["drained", "revoked", "cut", "reset", "silent"])
async def test_a_tunnel_that_ends_leaves_nothing(sshd: Sshd, harness: WorkerHarness, how: str) -> None:
    """A tunnel that is drained, revoked, cut, reset or does not answer its probe leaves no object."""
    await run_and_end(sshd, harness, how)

    await until(lambda: held().total() == 0)


class Gated:
    """A channel handler that serves each channel by the gate."""

    def __init__(self, prover: Prover) -> None:
        self.gate = Gate(replace(gate_with(GroupPolicy.build("ci")).context, proofs=prover))

    async def serve_channel(
        self, channel: AgentChannel, spec: TunnelSpec, forward: Forward, endpoint: Endpoint
    ) -> None:
        """Serve a channel as the daemon does."""
        caller = Caller(spec.agent, spec.incarnation, spec.name, spec.group, "registry-1", str(endpoint), forward.name)
        await self.gate.serve(channel, caller, forward, Traffic())


@pytest.mark.parametrize("manner", [Manner.DRAIN, Manner.REVOKE])
async def test_a_channel_that_the_gate_keeps_for_probes_leaves_nothing(
    sshd: Sshd, harness: WorkerHarness, manner: Manner
) -> None:
    """A gate's session that waits for the arrival of probes leaves no object when its tunnel ends."""
    spec = sshd.spec(forward())
    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, harness.settings(drain=0.1, channel_handler=Gated(harness.prover)))
        supervisor.open(OpenTunnel(spec.agent, 1, spec, FIRST))
        await harness.up(probes=3)
        supervisor.close(CloseTunnel(spec.agent, 1, manner))
        await until(lambda: harness.of(TunnelEnded))
    harness.events.clear()

    await until(lambda: held().total() == 0)


async def fail_to_dial(harness: WorkerHarness, spec: TunnelSpec) -> None:
    """Let a worker fail to dial."""
    async with asyncio.TaskGroup() as tasks:
        settings = harness.settings(login=replace(harness.login, connect_timeout=0.2))
        Supervisor(tasks, settings).open(OpenTunnel(spec.agent, 1, spec, FIRST))
        await until(lambda: harness.of(TunnelEnded))
    harness.events.clear()


async def test_a_host_key_mismatch_leaves_nothing(sshd: Sshd, harness: WorkerHarness) -> None:
    """A handshake that ends with a host key mismatch leaves no object."""
    await fail_to_dial(harness, sshd.spec(forward(), keys=[public(generate())]))

    await until(lambda: held().total() == 0)


@pytest.mark.parametrize("output", [b"", b"SSH-2.0-slow\r\n"])
async def test_an_agent_that_does_not_answer_leaves_nothing(sshd: Sshd, harness: WorkerHarness, output: bytes) -> None:
    """A dial or a scan that times out leaves no object."""

    async def stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(output)
        await reader.read()

    async with running_tcp_server(stop) as endpoint:
        await fail_to_dial(harness, sshd.spec(forward(), port=endpoint.port))
        with pytest.raises(UnreachableError):
            await scan_host_key(replace(sshd.agent(), port=endpoint.port), 0.2)

        await until(lambda: held().total() == 0)


async def test_a_host_key_scan_leaves_nothing(sshd: Sshd) -> None:
    """A host key scan leaves no object."""
    await scan_host_key(sshd.agent(), 5)

    await until(lambda: held().total() == 0)


def test_the_frames_of_all_causes_are_cleared() -> None:
    """The frames of an error's cause, its context and the members of a group are cleared."""

    class Kept:
        pass

    def inner() -> None:
        kept = Kept()
        raise ValueError(repr(kept))

    def outer() -> None:
        kept = Kept()
        try:
            inner()
        except ValueError as behind:
            raise ExceptionGroup(repr(kept), [RuntimeError(), behind]) from behind

    with pytest.raises(ExceptionGroup) as raised:
        outer()
    clear_exception_frames(raised.value)

    assert not any(isinstance(one, Kept) for one in gc.get_objects())
