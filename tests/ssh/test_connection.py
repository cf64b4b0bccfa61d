"""An open connection: its listeners, its streams, and its end."""

import asyncio

import asyncssh
import pytest

from tests.ssh.dialled_connection import AdmitAll, Decline, dialled
from tests.ssh.ssh_server import Sshd, free_port, running_tcp_server
from tests.until import until
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import ConnectionLostError, ListenRefusal, ListenRefusedError
from tunnelmgr.ssh.login import Login

# --- listeners and exchanges ---


async def test_a_listener_is_requested_by_its_literal_address(sshd: Sshd, login: Login) -> None:
    """The agent gets exactly the configured address, because `permitlisten` compares strings."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        listener = await connection.listen(endpoint, AdmitAll())

        assert listener is not None
        assert sshd.asked == [endpoint]


async def test_a_refused_listener_is_none_and_the_connection_stays(sshd: Sshd, login: Login) -> None:
    """After a refusal the next address can be requested."""
    taken, free = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    sshd.refuses.add(taken)
    async with dialled(sshd.spec(), login) as connection:
        assert await connection.listen(taken, AdmitAll()) is None
        assert await connection.listen(free, AdmitAll()) is not None


@pytest.mark.parametrize(
    ("debug_message", "refusal", "advice"),
    [
        ("Server has disabled port forwarding.", ListenRefusal.DISABLED, "AllowTcpForwarding yes"),
        ("port forwarding refused", ListenRefusal.NOT_PERMITTED, 'permitlisten="127.0.0.1:5000"'),
        ("something else", ListenRefusal.UNKNOWN, "ss -ltnp"),
    ],
)
async def test_sshds_reason_for_refusing_a_listener_is_kept(
    sshd: Sshd, login: Login, debug_message: str, refusal: ListenRefusal, advice: str
) -> None:
    """The reason is that of the latest refusal, and each has its own advice."""
    refused, free = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    sshd.refuses.add(refused)
    sshd.refusal_message = debug_message
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(refused, AdmitAll())
        assert connection.listen_refusal is refusal
        assert advice in str(ListenRefusedError("127.0.0.1:5000", refusal))

        await connection.listen(free, AdmitAll())
        assert connection.listen_refusal is ListenRefusal.UNKNOWN


async def test_binding_on_a_lost_connection_says_that_it_was_lost(sshd: Sshd, login: Login) -> None:
    """Binding on a lost connection raises ConnectionLostError and is not taken for a refusal."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.cut()
        await until(connection.lost.is_set)

        with pytest.raises(ConnectionLostError):
            await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())


async def test_an_exposed_listener_is_detected(sshd: Sshd, login: Login) -> None:
    """The debug message about GatewayPorts sets `exposed` before `listen` returns."""
    sshd.exposes = True
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())

        assert connection.exposed


async def test_other_debug_messages_are_ignored(sshd: Sshd, login: Login) -> None:
    """Debug messages with control characters or other text change nothing."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection.send_debug("\x1b[2J\0 GatewayPorts " + "x" * 10_000)
        assert await connection.listen(Endpoint("127.0.0.1", free_port()), AdmitAll())

        assert not connection.exposed


async def test_a_declined_channel_leaves_nothing_behind(sshd: Sshd, login: Login) -> None:
    """The agent gets `resource shortage`, the connection stays, and asyncssh keeps no channel."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(endpoint, Decline())
        for _ in range(20):
            with pytest.raises(asyncssh.ChannelOpenError, match="full") as refused:
                await sshd.connection.open_connection(endpoint.host, endpoint.port)
            assert refused.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE

        await until(lambda: not connection._conn._channels)
        assert not connection.lost.is_set()


async def test_channels_for_other_ports_are_refused(sshd: Sshd, login: Login) -> None:
    """The agent cannot open channels to other ports, sessions, or sockets here."""
    endpoint = Endpoint("127.0.0.1", free_port())
    async with dialled(sshd.spec(), login) as connection:
        await connection.listen(endpoint, AdmitAll())
        for host, port in (("127.0.0.1", 22), ("127.0.0.2", endpoint.port), ("", endpoint.port)):
            with pytest.raises(asyncssh.ChannelOpenError):
                await sshd.connection.open_connection(host, port)
        with pytest.raises(asyncssh.ChannelOpenError):
            await sshd.connection.open_unix_connection("/run/docker.sock")

        await until(lambda: not connection._conn._channels)
        assert not connection.lost.is_set()


async def test_a_stream_to_the_agent_carries_data_both_ways(sshd: Sshd, login: Login) -> None:
    """A stream carries data both ways, and leaves no channel behind."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4) + b"pong")
        await writer.drain()

    async with running_tcp_server(answer) as endpoint, dialled(sshd.spec(), login) as connection:
        stream = await connection.connect(endpoint)
        await stream.write(b"ping")
        got = b""
        while more := await stream.read():
            got += more
        stream.abort()
        await until(lambda: not connection._conn._channels)

    assert got == b"pingpong"


async def test_a_stream_that_the_agent_declines_is_a_refusal(sshd: Sshd, login: Login) -> None:
    """A refused stream raises ConnectionRefusedError, unlike a lost connection."""
    async with dialled(sshd.spec(), login) as connection:
        with pytest.raises(ConnectionRefusedError):
            await connection.connect(Endpoint("127.0.0.1", free_port()))


async def test_a_connection_lost_while_a_stream_is_opened_is_our_error(sshd: Sshd, login: Login) -> None:
    """A loss while a stream is opened raises ConnectionLostError and notifies the observer."""
    lost = asyncio.Event()

    class Observer:
        def connection_lost(self) -> None:
            lost.set()

    async with dialled(sshd.spec(), login) as connection, asyncio.TaskGroup() as tasks:
        connection.notify_lost(Observer())
        sshd.answers.clear()

        async def connect() -> None:
            with pytest.raises(ConnectionLostError):
                await connection.connect(Endpoint("127.0.0.1", 5000))

        tasks.create_task(connect())
        await until(lambda: sshd.opens_requested)
        sshd.cut()
        await asyncio.wait_for(lost.wait(), 5)
        with pytest.raises(ConnectionLostError):
            await connection.connect(Endpoint("127.0.0.1", 5000))


# --- the end ---


async def test_an_abort_drops_data_in_flight(sshd: Sshd, login: Login) -> None:
    """An abort drops what the kernel has buffered, and the agent sees a reset."""
    async with dialled(sshd.spec(), login) as connection:
        agents = sshd.connection
        agents._transport.pause_reading()
        connection._transport.write(bytes(64 << 20))
        connection._transport.bulk.idle()  # the kernel takes what it can
        connection.abort()
        agents._transport.resume_reading()
        await until(lambda: agents._transport is None)
        await connection.lost.wait()


async def test_a_lost_connection_says_why(sshd: Sshd, login: Login) -> None:
    """The reason of a loss is the disconnect message, or that the agent closed the connection."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection.disconnect(asyncssh.DISC_SERVICE_NOT_AVAILABLE, "going down")
        await until(connection.lost.is_set)

        assert "going down" in connection.loss


async def test_an_unanswered_close_ends_after_the_timeout(sshd: Sshd, login: Login) -> None:
    """A close that the agent does not answer drops the connection after the given time."""
    async with dialled(sshd.spec(), login) as connection:
        sshd.connection._transport.pause_reading()

        async with asyncio.timeout(5):
            await connection.close(0.1)
            await connection.lost.wait()
