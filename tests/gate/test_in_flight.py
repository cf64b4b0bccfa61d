"""What the gate says of the requests that it serves now."""

import asyncio
from typing import TYPE_CHECKING

from tests.gate.test_exchange import LIST, gate_with_timeouts
from tests.until import until

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted, Talk


async def test_a_request_is_in_flight_until_its_response_has_ended(talk: "Talk", scripted: "Scripted") -> None:
    """While a body is on its way, the request is there with its bytes so far; after its end it is not."""
    release = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.")
        await release.wait()
        writer.write(b"half.")

    gate = gate_with_timeouts()
    async with scripted(slow) as registry, talk(gate, registry.endpoint) as agent:
        agent.channel.send(f"GET {LIST} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
        await until(lambda: bytes(agent.channel.outgoing).endswith(b"half."))
        (request,) = gate.context.in_flight
        transfer = request.transfer(request.state.began + 2.0)
        release.set()
        await agent.answer()
        await until(lambda: not gate.context.in_flight)

    assert (transfer.agent, transfer.group, transfer.forward) == ("static:builder-1", "ci", "registry")
    assert (transfer.method, transfer.action, transfer.status) == ("GET", "pull", 200)
    assert transfer.to_agent > len("half.")
    assert transfer.from_agent > 0
    assert transfer.seconds == 2.0
    assert transfer.repository in LIST


async def test_only_the_bytes_of_the_request_itself_are_counted(talk: "Talk", scripted: "Scripted") -> None:
    """The second request of a channel begins at zero, and has a number of its own."""
    release = asyncio.Event()

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + 1000 * b"x")
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    gate = gate_with_timeouts()
    async with scripted(twice) as registry, talk(gate, registry.endpoint) as agent:
        await agent.ask("GET", LIST)
        agent.channel.send(f"GET {LIST} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
        await until(lambda: any(one.state.request for one in gate.context.in_flight))
        (second,) = gate.context.in_flight
        transfer = second.transfer(second.state.began)
        release.set()
        await agent.answer()

    assert transfer.to_agent == 0
    assert transfer.number > 1


async def test_a_request_whose_head_is_not_complete_has_no_action(talk: "Talk", scripted: "Scripted") -> None:
    """A request of which only the beginning has arrived is in flight, without an action or a repository."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        await reader.read()

    gate = gate_with_timeouts()
    async with scripted(silent) as registry, talk(gate, registry.endpoint) as agent:
        agent.channel.send(b"GET /v2/ HTTP/1.1\r\n")
        await until(lambda: gate.context.in_flight)
        (request,) = gate.context.in_flight
        transfer = request.transfer(request.state.began)

    assert (transfer.method, transfer.action, transfer.repository, transfer.status) == ("-", "-", "", 0)
    assert gate.context.in_flight == set()
