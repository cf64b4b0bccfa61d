"""A channel's connection to the registry, without a session."""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from tests.gate.memory_channel import MemoryChannel
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.registry_connection import RegistryConnection
from tunnelmgr.gate.registry_slot import MAX_PENDING_REQUESTS

if TYPE_CHECKING:
    from tests.gate.conftest import Script, Scripted, ScriptedRegistry

GET = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def connection_to(registry: "ScriptedRegistry") -> RegistryConnection:
    """Return a connection with timeouts longer than the test."""
    return RegistryConnection(registry.endpoint, Slots(MAX_PENDING_REQUESTS), head_timeout=10, idle_timeout=10)


async def test_sending_to_a_registry_that_closed_is_an_error_of_the_registry(scripted: "Scripted") -> None:
    """Sending to a registry that closed the connection raises RegistryUnavailableError."""

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with scripted(reset) as registry, asyncio.timeout(10):
        connection = connection_to(registry)
        await connection.open()
        with pytest.raises(RegistryUnavailableError, match="closed the connection"):
            await send_for_ever(connection)
        connection.abort()


async def send_for_ever(connection: RegistryConnection) -> None:
    """Send until it fails."""
    while True:
        await connection.send(bytes(1 << 20))


async def test_a_body_may_arrive_after_its_head(scripted: "Scripted") -> None:
    """A body that arrives after its head is streamed whole, and the connection is kept."""
    asked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await asked.wait()
        writer.write(b"ok")
        await reader.read()

    async with scripted(script) as registry, asyncio.timeout(10):
        connection = connection_to(registry)
        head = await connection.round_trip("GET", GET)
        asked.set()
        body = [bytes(piece) async for pieces in connection.stream_body(head) for piece in pieces]
        kept = await connection.open()
        connection.abort()

    assert body == [b"ok"]
    assert kept


async def test_a_response_that_arrives_as_the_body_ends_stops_the_timeout(scripted: "Scripted") -> None:
    """If the sending task's callback runs after the response has arrived, it does not touch the ended timeout."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"ok")
        await reader.read()

    async with scripted(script) as registry, asyncio.timeout(10):
        connection = connection_to(registry)
        await connection.open()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(connection.send(GET), name="gate body")
        while connection._current_socket().idle:  # noqa: ASYNC110 (the bytes arrive by themselves, within the deadline)
            await asyncio.sleep(0)
        head = await connection.receive_head("GET", after=sending)
        await asyncio.sleep(0)
        connection.abort()

    assert head.status == 200
    assert complaints == []


def closing_within_a_body(head: bytes, *, reset: bool = False) -> "Script":
    """Return a registry that responds with `head` and closes within the body."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        await writer.drain()
        await reader.readexactly(1)
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return script


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"


@pytest.mark.parametrize(("reset", "words"), [(False, "in the middle of a response"), (True, "closed the connection")])
async def test_a_registry_that_closes_within_a_body_is_an_error(
    scripted: "Scripted", channel: MemoryChannel, reset: bool, words: str
) -> None:
    """A registry that closes or resets within a counted body raises RegistryUnavailableError."""
    async with scripted(closing_within_a_body(LONG, reset=reset)) as registry, asyncio.timeout(10):
        connection = connection_to(registry)
        await connection.round_trip("GET", GET)
        await connection.send(b"x")
        with pytest.raises(RegistryUnavailableError, match=words):
            await connection.send_to(channel, 1000, lambda _: None)
        connection.abort()


async def test_a_registry_that_closes_within_a_chunk_is_an_error(scripted: "Scripted") -> None:
    """A registry that closes within a chunk raises RegistryUnavailableError."""
    async with scripted(closing_within_a_body(CHUNKED)) as registry, asyncio.timeout(10):
        connection = connection_to(registry)
        head = await connection.round_trip("GET", GET)
        await connection.send(b"x")
        with pytest.raises(RegistryUnavailableError, match="in the middle of a response"):
            _ = [pieces async for pieces in connection.stream_body(head)]
        connection.abort()


async def test_an_agent_that_is_lost_within_a_body_is_not_an_error_of_the_registry(scripted: "Scripted") -> None:
    """If the agent is lost within a body, the agent's ConnectionError is raised."""
    async with scripted(closing_within_a_body(LONG + b"part")) as registry, asyncio.timeout(10):
        connection = connection_to(registry)
        await connection.round_trip("GET", GET)
        assert connection.take_received(1000) == b"part"
        with pytest.raises(ConnectionResetError):
            await connection.send_to(GoneChannel(), 996, lambda _: None)
        connection.abort()


class GoneChannel(MemoryChannel):
    """A channel whose agent is lost."""

    async def send_from(self, *_: object) -> int:
        """Fail, as a closed channel does."""
        raise ConnectionResetError("the channel is closed")


async def test_an_empty_body_ends_at_once(scripted: "Scripted") -> None:
    """An empty body ends without waiting for bytes."""
    async with (
        scripted(closing_within_a_body(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as registry,
        asyncio.timeout(10),
    ):
        connection = connection_to(registry)
        head = await connection.round_trip("GET", GET)
        assert [pieces async for pieces in connection.stream_body(head)] == []
        connection.abort()


async def test_an_agent_waits_for_a_slot_until_one_of_its_requests_is_answered(scripted: "Scripted") -> None:
    """A request waits for a free slot until an earlier response begins, and fails after the timeout."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await answer.wait()
        writer.write(HEAD + b"ok")
        await reader.read()

    async with scripted(slow) as registry, asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        slots = Slots(1)
        connections = [
            RegistryConnection(registry.endpoint, slots, head_timeout=patience, idle_timeout=10)
            for patience in (9, 0.05)
        ]
        first = tasks.create_task(connections[0].round_trip("GET", GET), name="first")
        await asked.wait()
        with pytest.raises(RegistryUnavailableError, match="earlier requests of this agent"):
            await connections[1].round_trip("GET", GET)

        answer.set()
        assert (await first).status == 200
        assert (await connections[1].round_trip("GET", GET)).status == 200
        for connection in connections:
            connection.abort()
