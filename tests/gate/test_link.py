"""A channel's connection to the registry, by itself."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.link import RegistryLink

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted, ScriptedRegistry

GET = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def link_to(registry: "ScriptedRegistry") -> RegistryLink:
    """Return a link that waits as long as the test may take."""
    return RegistryLink(registry.endpoint, head_timeout=10, idle_timeout=10)


async def test_sending_to_a_registry_that_hung_up_is_its_fault(scripted: "Scripted") -> None:
    """It is unavailable; the agent did nothing wrong."""

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with scripted(reset) as registry, asyncio.timeout(10):
        link = link_to(registry)
        await link.open()
        with pytest.raises(RegistryUnavailableError, match="hung up"):
            await send_for_ever(link)
        link.abort()


async def send_for_ever(link: RegistryLink) -> None:
    """Send until it fails."""
    while True:
        await link.send(bytes(1 << 20))


async def test_a_body_may_come_after_its_head(scripted: "Scripted") -> None:
    """Nothing is yielded before there is something."""
    asked = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        await asked.wait()
        writer.write(b"ok")
        await reader.read()

    async with scripted(script) as registry, asyncio.timeout(10):
        link = link_to(registry)
        head = await link.ask("GET", GET)
        asked.set()
        body = [bytes(piece) async for pieces in link.body(head) for piece in pieces]
        kept = await link.open()
        link.abort()

    assert body == [b"ok"]
    assert kept


async def test_an_answer_that_comes_as_the_body_ends_stops_the_clock(scripted: "Scripted") -> None:
    """The task's end may be announced after the wait is over, and must do no harm then."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"ok")
        await reader.read()

    async with scripted(script) as registry, asyncio.timeout(10):
        link = link_to(registry)
        await link.open()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(link.send(GET), name="gate body")
        while link._connection().idle:  # noqa: ASYNC110 (the bytes arrive by themselves, within the deadline)
            await asyncio.sleep(0)
        head = await link.receive_head("GET", after=sending)
        await asyncio.sleep(0)
        link.abort()

    assert head.status == 200
    assert complaints == []
