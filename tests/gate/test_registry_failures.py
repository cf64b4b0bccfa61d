"""The gate when a registry misbehaves: the agent gets an error or a closed channel, and nothing stays open."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted, Talk
from tests.gate.test_exchange import GET, LIST, OK, PUT, gate_with_timeouts, replying


def closing_after(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]:
    """Script a registry that sends one response and closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    return script  # type: ignore[return-value]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 O",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"x" * 40_000,
    ],
)
async def test_a_response_that_is_not_http_is_503(talk: "Talk", scripted: "Scripted", answer: bytes) -> None:
    """A registry that closes within a head, or sends something other than HTTP, is answered 503."""
    async with scripted(closing_after(answer)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        refused = await agent.ask("GET", LIST)

    assert (refused.status, refused.code) == (503, "UNAVAILABLE")


async def test_a_registry_that_closes_within_a_body_ends_the_channel(talk: "Talk", scripted: "Scripted") -> None:
    """If the registry closes within a body, the channel ends there, so the client sees that the blob is incomplete."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async with scripted(closing_after(half)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert agent.channel.closed
    assert bytes(agent.channel.outgoing).endswith(b"\r\n\r\nhalf")


async def test_a_registry_that_resets_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that resets the connection before its response is answered 503."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with scripted(reset) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        refused = await agent.ask("GET", LIST)

    assert refused.status == 503


async def test_a_silent_registry_is_503_after_the_timeout(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that sends no response is answered 503 after the timeout, with and without a request body."""
    async with (
        scripted(replying(b"", b"")) as registry,
        talk(gate_with_timeouts(response=0.02), registry.endpoint) as agent,
    ):
        bodiless = await agent.ask("GET", LIST)
        agent.channel.send(PUT + b"Content-Length: 3\r\n\r\nabc")
        with_body = await agent.answer("PUT")
        agent.channel.end()

    assert (bodiless.status, with_body.status) == (503, 503)
    assert "did not answer within 0.02 s" in with_body.message


async def test_a_registry_that_stalls_within_a_body_ends_the_channel(talk: "Talk", scripted: "Scripted") -> None:
    """If the registry stalls within a body for longer than the timeout, the channel ends."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async with (
        scripted(replying(half)) as registry,
        talk(gate_with_timeouts(response=0.05), registry.endpoint) as agent,
    ):
        agent.channel.send(GET)
        await agent.finished()

    assert bytes(agent.channel.outgoing).endswith(b"half")


async def test_a_redirect_to_another_host_is_502_with_advice(talk: "Talk", scripted: "Scripted") -> None:
    """A redirect to another host, which would bypass the tunnel, gets 502 and the setting to change."""
    away = (
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://bucket.s3.amazonaws.com/x\r\nContent-Length: 0\r\n\r\n"
    )

    async with scripted(replying(away)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        refused = await agent.ask("GET", LIST)

    assert refused.status == 502
    assert "set storage.redirect.disable" in refused.message


async def test_interim_responses_are_not_forwarded(talk: "Talk", scripted: "Scripted") -> None:
    """Interim responses of the registry are not forwarded, only the final one is."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK

    async with scripted(replying(early)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        answered = await agent.ask("GET", LIST)

    assert (answered.status, answered.body) == (200, b"ok")
    assert agent.interim == []


async def test_a_chunked_response_is_chunked_to_the_agent(talk: "Talk", scripted: "Scripted") -> None:
    """A chunked response is chunked to the agent, and the connection serves the next request."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"

    async with scripted(replying(chunked, OK)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", LIST) for _ in "12"]

    assert [answer.body for answer in answers] == [b"abc", b"ok"]
    assert registry.connections == 1


async def test_an_incomplete_chunked_response_gets_no_last_chunk(talk: "Talk", scripted: "Scripted") -> None:
    """A chunked response that the registry does not complete reaches the agent without a last chunk."""
    broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n"

    async with scripted(replying(broken)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert b"0\r\n\r\n" not in agent.channel.outgoing


async def test_a_response_until_close_ends_in_a_last_chunk(talk: "Talk", scripted: "Scripted") -> None:
    """A response that ends with the registry's connection is chunked to the agent, whose channel continues."""
    body = b"x" * 200_000

    async with (
        scripted(closing_after(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + body)) as registry,
        talk(gate_with_timeouts(), registry.endpoint) as agent,
    ):
        answers = [await agent.ask("GET", LIST) for _ in "12"]

    assert [answer.body for answer in answers] == [body] * 2
    assert registry.connections == 2


async def test_a_connection_that_ended_while_idle_is_replaced(talk: "Talk", scripted: "Scripted") -> None:
    """A kept connection that the registry closed while idle is replaced, and the agent gets its response."""
    async with scripted(closing_after(OK)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", LIST) for _ in "123"]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert registry.connections == 3


def closing_the_second_time(counter: list[int]) -> Callable[..., "asyncio.Future[None]"]:
    """Script a registry whose first connection serves one request, and closes at the second."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counter.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        if len(counter) > 1:
            writer.write(OK)

    return script  # type: ignore[return-value]


async def test_a_get_on_a_connection_that_closes_is_sent_again(talk: "Talk", scripted: "Scripted") -> None:
    """A GET on a kept connection that the registry closes is sent again (RFC 9110, section 9.2.2)."""
    async with (
        scripted(closing_the_second_time([])) as registry,
        talk(gate_with_timeouts(), registry.endpoint) as agent,
    ):
        answers = [await agent.ask("GET", LIST) for _ in "12"]

    assert [answer.status for answer in answers] == [200, 200]
    assert registry.connections == 2


async def test_a_post_on_a_connection_that_closes_is_not_sent_again(talk: "Talk", scripted: "Scripted") -> None:
    """A POST on a kept connection that the registry closes is not sent again, since it may have taken effect."""
    async with (
        scripted(closing_the_second_time([])) as registry,
        talk(gate_with_timeouts(), registry.endpoint) as agent,
    ):
        await agent.ask("GET", LIST)
        refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/")

    assert refused.status == 503
    assert registry.connections == 1


async def test_surplus_bytes_of_the_registry_answer_no_request(talk: "Talk", scripted: "Scripted") -> None:
    """A connection on which the registry sent more than its response is replaced, so no request gets the surplus."""
    async with scripted(replying(OK + OK)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", LIST) for _ in "12"]

    assert [answer.status for answer in answers] == [200, 200]
    assert registry.connections == 2


async def test_an_early_refusal_is_forwarded_while_the_body_arrives(talk: "Talk", scripted: "Scripted") -> None:
    """A registry's early refusal is forwarded while the body is still arriving, and then the channel ends."""
    full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull"

    async with scripted(replying(full)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 1000000\r\n\r\nabc")
        refused = await agent.answer("PUT")
        agent.channel.end()
        await agent.finished()

    assert (refused.status, refused.body) == (413, b"full")
    assert refused.headers["connection"] == "close"
    assert agent.channel.ended


async def test_an_early_response_ends_a_blocked_upload(talk: "Talk", scripted: "Scripted") -> None:
    """An upload that waits for the registry to read ends when the registry responds."""
    full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull"
    more = asyncio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await more.wait()
        writer.write(full)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with scripted(stuck) as registry, talk(gate_with_timeouts(drain=0.02), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(32_000_000))
        more.set()
        refused = await agent.answer("PUT")
        await agent.finished()

    assert refused.status == 413


async def test_a_read_body_that_was_not_sent_whole_ends_only_the_registrys_connection(
    talk: "Talk", scripted: "Scripted"
) -> None:
    """If a body was read whole but not sent whole, the channel continues on a new connection to the registry."""
    size = 32_000_000
    full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull"

    async with scripted(replying(full)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        refused = await agent.answer("PUT")
        after = await agent.ask("GET", "/.well-known/tunnelmgr")

    assert (refused.status, after.status) == (413, 200)


async def test_a_registry_that_closes_during_an_upload_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that closes during an upload without a response is answered 503."""
    async with scripted(closing_after(b"")) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(16_000_000))
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 503


async def test_a_registry_that_stops_reading_an_upload_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that stops reading an upload is answered 503 after the timeout."""

    async def stuck(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with scripted(stuck) as registry, talk(gate_with_timeouts(response=0.05), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(32_000_000))
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 503
