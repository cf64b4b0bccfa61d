"""What an ended tunnel held is freed by its end: no collection of garbage is needed for it."""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import asyncssh
import pytest

from tests.ssh.ssh_server import Sshd, forward, generate, public, running_tcp_server, until
from tests.ssh.worker_harness import WorkerHarness
from tunnelmgr.core.events import TunnelEnded
from tunnelmgr.core.precedence import FIRST
from tunnelmgr.core.reconcile import CloseTunnel, Manner, OpenTunnel
from tunnelmgr.core.tunnel import TunnelSpec
from tunnelmgr.dataplane.channel import ForwardedChannel
from tunnelmgr.dataplane.exception_frames import clear_exception_frames
from tunnelmgr.dataplane.fast_path import fast_path_status
from tunnelmgr.dataplane.stream import Stream
from tunnelmgr.dataplane.transport import SshTransport
from tunnelmgr.errors import UnreachableError
from tunnelmgr.ssh.client import Peer, SshConnection
from tunnelmgr.ssh.host_key_scan import scan_host_key
from tunnelmgr.tunnel.supervisor import Supervisor
from tunnelmgr.tunnel.worker import Worker

OURS = (Worker, SshConnection, asyncssh.SSHClientConnection, Peer, SshTransport, Stream, ForwardedChannel)


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    """Collect nothing during the test; what earlier tests and the examination of asyncssh left is collected before."""
    fast_path_status()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held() -> Counter[str]:
    """Return how many objects of a tunnel there are, by their class."""
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, OURS))


async def lives_and_dies(sshd: Sshd, harness: WorkerHarness, how: str) -> None:
    """Let a tunnel come up with a client on it, and end it."""
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
            case "silent":
                harness.silent = True
            case _:
                supervisor.close(CloseTunnel(spec.agent, 1, Manner.DRAIN if how == "drained" else Manner.REVOKE))
        await until(lambda: harness.of(TunnelEnded))
        writer.close()
    harness.events.clear()


@pytest.mark.parametrize("how", ["drained", "revoked", "cut", "silent"])
async def test_a_tunnel_that_ends_leaves_nothing(sshd: Sshd, harness: WorkerHarness, how: str) -> None:
    """However it ends: as asked, at once, by a loss, or by a probe that is not answered."""
    await lives_and_dies(sshd, harness, how)

    await until(lambda: held().total() == 0)


async def fails(harness: WorkerHarness, spec: TunnelSpec) -> None:
    """Let a worker dial in vain."""
    async with asyncio.TaskGroup() as tasks:
        settings = harness.settings(login=replace(harness.login, connect_timeout=0.2))
        Supervisor(tasks, settings).open(OpenTunnel(spec.agent, 1, spec, FIRST))
        await until(lambda: harness.of(TunnelEnded))
    harness.events.clear()


async def test_a_stranger_leaves_nothing(sshd: Sshd, harness: WorkerHarness) -> None:
    """A host key that is not the expected one ends the handshake."""
    await fails(harness, sshd.spec(forward(), keys=[public(generate())]))

    await until(lambda: held().total() == 0)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-slow\r\n"])
async def test_an_agent_that_does_not_answer_leaves_nothing(sshd: Sshd, harness: WorkerHarness, said: bytes) -> None:
    """Hundreds of them are tried again and again."""

    async def stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await reader.read()

    async with running_tcp_server(stop) as endpoint:
        await fails(harness, sshd.spec(forward(), port=endpoint.port))
        with pytest.raises(UnreachableError):
            await scan_host_key(replace(sshd.agent(), port=endpoint.port), 0.2)

        await until(lambda: held().total() == 0)


async def test_a_look_at_a_host_key_leaves_nothing(sshd: Sshd) -> None:
    """It is taken before each life of a tunnel where an authority or a label proves the agent."""
    await scan_host_key(sshd.agent(), 5)

    await until(lambda: held().total() == 0)


def test_every_exception_behind_an_error_is_unwound() -> None:
    """What it came from, what it came up in, and the members of a group."""

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
