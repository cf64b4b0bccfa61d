"""The gate when a registry or an agent misbehaves: it responds or closes the channel, and leaves nothing open."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from lab.gate_stand_ins import ListenerProofs, gate_with
from tests.gate.conftest import Records
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.oci import probe_request
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.timeouts import Timeouts
from tunnelmgr.gate.traffic import Traffic

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, MemoryChannel, Scripted, Talk
    from tunnelmgr.gate.caller import Caller

HOST = b"Host: localhost:5000\r\n"
NOBODY = Endpoint("127.0.0.1", 1)
GET = b"GET /v2/ HTTP/1.1\r\n" + HOST + b"\r\n"
PUT = b"PUT /v2/team/app/manifests/v1 HTTP/1.1\r\n" + HOST
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def impatient_gate(**seconds: float) -> Gate:
    """Return a gate whose group may push, with the given timeouts."""
    policy = GroupPolicy.build("ci", push=("**",), immutable_tags=("release-*",))
    return gate_with(policy, timeouts=Timeouts(**seconds))


def replying(*answers: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]:
    """Script a registry that sends the next response for each request's head, then waits for the end."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await reader.read()

    return script  # type: ignore[return-value]


def closing_after(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]:
    """Script a registry that sends one response and closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    return script  # type: ignore[return-value]


async def test_the_gate_shows_an_agent_its_identity_without_a_registry(talk: "Talk") -> None:
    """The well-known path shows the agent its identity, and a proof for a nonce, while the registry is unreachable."""
    async with talk(impatient_gate(), NOBODY) as agent:
        identity = await agent.ask("GET", "/.well-known/tunnelmgr")
        proved = await agent.ask("GET", "/.well-known/tunnelmgr", "Tunnelmgr-Nonce: 0aF9")
        asked = await agent.ask("HEAD", "/.well-known/tunnelmgr")

    known = {"agent": "static:builder-1", "group": "ci", "controller": "registry-1"}
    assert json.loads(identity.body) == known
    assert json.loads(proved.body) == known | {"proof": "0aF9@127.0.0.1:5000"}
    assert (asked.status, asked.body) == (200, b"")


async def test_a_probe_gets_the_same_response_in_any_form(talk: "Talk", caller: "Caller") -> None:
    """A probe recognized by its exact bytes gets the same response and record as one that is parsed."""
    records = Records()
    gate = Gate(replace(impatient_gate().context, requests=records))
    question = probe_request(caller.listener, "0aF9")
    async with talk(gate, NOBODY) as agent:
        agent.channel.send(question)
        probed = await agent.answer()
        assert agent.traffic.channels == 0

        agent.channel.send(question.replace(b"Host", b"host"))
        likened = await agent.answer()
        agent.channel.send(probe_request(caller.listener, "xyz"))
        odd = await agent.answer()
        agent.channel.end()

    assert json.loads(probed.body)["proof"] == "0aF9@127.0.0.1:5000"
    assert (probed.status, probed.headers, probed.body) == (likened.status, likened.headers, likened.body)
    assert odd.status == 400
    assert [(record.action, record.status) for record in records.all] == [
        ("well-known", status) for status in (200, 200, 400)
    ]
    exact, otherwise = (replace(record, took=0.0) for record in records.all[:2])
    assert exact == otherwise


async def test_a_probe_whose_reply_is_not_read_ends_its_channel(talk: "Talk", caller: "Caller") -> None:
    """A channel whose agent does not read the reply to a probe is closed."""
    async with talk(impatient_gate(response=0.01), NOBODY) as agent:
        agent.channel.stalled = True
        agent.channel.send(probe_request(caller.listener, "0aF9"))
        await agent.finished()


@pytest.mark.parametrize(
    "lines",
    [("Tunnelmgr-Nonce: xyz",), ("Tunnelmgr-Nonce: " + "a" * 129,), ("Tunnelmgr-Nonce: a", "Tunnelmgr-Nonce: b")],
)
async def test_a_nonce_is_short_and_hexadecimal(talk: "Talk", lines: tuple[str, ...]) -> None:
    """A nonce that is empty, too long, repeated or not hexadecimal gets 400 and no proof."""
    async with talk(impatient_gate(), NOBODY) as agent:
        refused = await agent.ask("GET", "/.well-known/tunnelmgr", *lines)
        agent.channel.end()

    assert refused.status == 400


async def test_an_unreachable_registry_is_503_and_the_channel_continues(talk: "Talk") -> None:
    """A request to an unreachable registry gets 503, and the next request on the channel is served."""
    async with talk(impatient_gate(), NOBODY) as agent:
        away = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [(answer.status, answer.code) for answer in away] == [(503, "UNAVAILABLE")] * 2
    assert away[0].message.startswith("tunnelmgr: the registry at 127.0.0.1:1 cannot be reached")


async def test_a_push_to_an_unreachable_registry_is_503(talk: "Talk") -> None:
    """A push to an unreachable registry gets 503 without 100 Continue, and the channel ends."""
    async with talk(impatient_gate(), NOBODY) as agent:
        agent.channel.send(PUT + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        away = await agent.answer("PUT")
        agent.channel.end()

    assert away.status == 503
    assert agent.interim == []


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
    async with scripted(closing_after(answer)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/")

    assert (refused.status, refused.code) == (503, "UNAVAILABLE")


async def test_a_registry_that_closes_within_a_body_ends_the_channel(talk: "Talk", scripted: "Scripted") -> None:
    """If the registry closes within a body, the channel ends there, so the client sees that the blob is incomplete."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async with scripted(closing_after(half)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert agent.channel.closed
    assert bytes(agent.channel.outgoing).endswith(b"\r\n\r\nhalf")


async def test_a_registry_that_resets_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that resets the connection before its response is answered 503."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        import socket  # noqa: PLC0415
        import struct  # noqa: PLC0415

        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with scripted(reset) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/")

    assert refused.status == 503


async def test_a_silent_registry_is_503_after_the_timeout(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that sends no response is answered 503 after the timeout, with and without a request body."""
    async with (
        scripted(replying(b"", b"")) as registry,
        talk(impatient_gate(response=0.02), registry.endpoint) as agent,
    ):
        bodiless = await agent.ask("GET", "/v2/")
        agent.channel.send(PUT + b"Content-Length: 3\r\n\r\nabc")
        with_body = await agent.answer("PUT")
        agent.channel.end()

    assert (bodiless.status, with_body.status) == (503, 503)
    assert "did not answer within 0.02 s" in with_body.message


async def test_a_registry_that_stalls_within_a_body_ends_the_channel(talk: "Talk", scripted: "Scripted") -> None:
    """If the registry stalls within a body for longer than the timeout, the channel ends."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async with scripted(replying(half)) as registry, talk(impatient_gate(response=0.05), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert bytes(agent.channel.outgoing).endswith(b"half")


async def test_a_redirect_to_another_host_is_502_with_advice(talk: "Talk", scripted: "Scripted") -> None:
    """A redirect to another host, which would bypass the tunnel, gets 502 and the setting to change."""
    away = (
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://bucket.s3.amazonaws.com/x\r\nContent-Length: 0\r\n\r\n"
    )

    async with scripted(replying(away)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/")

    assert refused.status == 502
    assert "set storage.redirect.disable" in refused.message


async def test_interim_responses_are_not_forwarded(talk: "Talk", scripted: "Scripted") -> None:
    """Interim responses of the registry are not forwarded, only the final one is."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK

    async with scripted(replying(early)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        answered = await agent.ask("GET", "/v2/")

    assert (answered.status, answered.body) == (200, b"ok")
    assert agent.interim == []


async def test_a_chunked_response_is_chunked_to_the_agent(talk: "Talk", scripted: "Scripted") -> None:
    """A chunked response is chunked to the agent, and the connection serves the next request."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"

    async with scripted(replying(chunked, OK)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.body for answer in answers] == [b"abc", b"ok"]
    assert registry.connections == 1


async def test_an_incomplete_chunked_response_gets_no_last_chunk(talk: "Talk", scripted: "Scripted") -> None:
    """A chunked response that the registry does not complete reaches the agent without a last chunk."""
    broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n"

    async with scripted(replying(broken)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert b"0\r\n\r\n" not in agent.channel.outgoing


async def test_a_response_until_close_ends_in_a_last_chunk(talk: "Talk", scripted: "Scripted") -> None:
    """A response that ends with the registry's connection is chunked to the agent, whose channel continues."""
    body = b"x" * 200_000

    async with (
        scripted(closing_after(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + body)) as registry,
        talk(impatient_gate(), registry.endpoint) as agent,
    ):
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.body for answer in answers] == [body] * 2
    assert registry.connections == 2


async def test_a_connection_that_ended_while_idle_is_replaced(talk: "Talk", scripted: "Scripted") -> None:
    """A kept connection that the registry closed while idle is replaced, and the agent gets its response."""
    async with scripted(closing_after(OK)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "123"]

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
    async with scripted(closing_the_second_time([])) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.status for answer in answers] == [200, 200]
    assert registry.connections == 2


async def test_a_post_on_a_connection_that_closes_is_not_sent_again(talk: "Talk", scripted: "Scripted") -> None:
    """A POST on a kept connection that the registry closes is not sent again, since it may have taken effect."""
    async with scripted(closing_the_second_time([])) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        await agent.ask("GET", "/v2/")
        refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/")

    assert refused.status == 503
    assert registry.connections == 1


async def test_surplus_bytes_of_the_registry_answer_no_request(talk: "Talk", scripted: "Scripted") -> None:
    """A connection on which the registry sent more than its response is replaced, so no request gets the surplus."""
    async with scripted(replying(OK + OK)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.status for answer in answers] == [200, 200]
    assert registry.connections == 2


async def test_an_early_refusal_is_forwarded_while_the_body_arrives(talk: "Talk", scripted: "Scripted") -> None:
    """A registry's early refusal is forwarded while the body is still arriving, and then the channel ends."""
    full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull"

    async with scripted(replying(full)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
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

    async with scripted(stuck) as registry, talk(impatient_gate(drain=0.02), registry.endpoint) as agent:
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

    async with scripted(replying(full)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        refused = await agent.answer("PUT")
        after = await agent.ask("GET", "/.well-known/tunnelmgr")

    assert (refused.status, after.status) == (413, 200)


async def test_a_registry_that_closes_during_an_upload_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that closes during an upload without a response is answered 503."""
    async with scripted(closing_after(b"")) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(16_000_000))
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 503


async def test_a_registry_that_stops_reading_an_upload_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that stops reading an upload is answered 503 after the timeout."""

    async def stuck(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with scripted(stuck) as registry, talk(impatient_gate(response=0.05), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(32_000_000))
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 503


async def test_an_agent_that_closes_within_a_body_ends_the_upload(talk: "Talk", scripted: "Scripted") -> None:
    """If the agent closes within a body, the registry's connection closes too, so the upload is not completed."""

    async def reading(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(100)

    async with scripted(reading) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 100\r\n\r\nabc")
        agent.channel.end()
        await agent.finished()
        async with asyncio.timeout(10):
            await registry.lost.wait()

    assert not agent.channel.outgoing


async def test_a_body_that_stops_arriving_is_400(talk: "Talk", scripted: "Scripted") -> None:
    """A body that stops arriving gets 400 after the timeout, and the upload ends."""
    async with scripted(replying(b"")) as registry, talk(impatient_gate(body=0.02), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 100\r\n\r\nabc")
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 400


async def test_a_head_that_is_incomplete_at_the_timeout_is_400(talk: "Talk") -> None:
    """A head that is incomplete at the timeout gets 400, however slowly its bytes arrive."""
    async with talk(impatient_gate(head=0.02), NOBODY) as agent:
        agent.channel.send(b"GET /v2/ HT")
        refused = await agent.answer()
        agent.channel.end()

    assert refused.status == 400


async def test_a_head_may_arrive_in_pieces(talk: "Talk") -> None:
    """A head that arrives in pieces within the timeout is served."""
    async with talk(impatient_gate(), NOBODY) as agent:
        for byte in b"GET /.well-known/tunnelmgr HTTP/1.1\r\n" + HOST + b"\r\n":
            agent.channel.send(bytes([byte]))
        response = await agent.answer()

    assert response.status == 200


async def test_an_agent_that_closes_within_a_head_gets_nothing(talk: "Talk") -> None:
    """An agent that closes within a head gets no response and leaves no record."""
    records = Records()
    gate = Gate(replace(impatient_gate().context, requests=records))

    async with talk(gate, NOBODY) as agent:
        agent.channel.send(b"GET /v2/ HT")

    assert not agent.channel.outgoing
    assert records.all == []


async def test_a_response_that_keeps_arriving_is_not_cut_off(talk: "Talk", scripted: "Scripted") -> None:
    """A response may take longer than the timeout, which bounds only the time without progress."""
    loop = asyncio.get_running_loop()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        until = loop.time() + 0.5
        while loop.time() < until:
            writer.write(b"x")
            await asyncio.sleep(0)

    async with scripted(trickle) as registry, talk(impatient_gate(response=0.2), registry.endpoint) as agent:
        answered = await agent.ask("GET", "/v2/")

    assert answered.status == 200


async def test_an_idle_channel_is_closed_after_the_timeout(talk: "Talk") -> None:
    """A channel without a request is closed after the timeout, without a response."""
    async with talk(impatient_gate(idle=0.02), NOBODY) as agent:
        await agent.finished()

    assert not agent.channel.outgoing


async def test_discarding_a_refused_body_has_a_timeout(talk: "Talk") -> None:
    """An agent that neither sends nor ends its refused body does not keep the channel open."""
    async with talk(impatient_gate(drain=0.02), NOBODY) as agent:
        agent.channel.send(b"\x00")
        refused = await agent.answer()
        await agent.finished()

    assert refused.status == 400


@pytest.mark.parametrize("raw", [GET, b"GET /.well-known/tunnelmgr HTTP/1.1\r\n" + HOST + b"\r\n"])
async def test_an_agent_that_does_not_read_its_response_loses_the_channel(
    talk: "Talk", scripted: "Scripted", raw: bytes
) -> None:
    """An agent that does not read a response, the registry's or the gate's own, loses its channel after the timeout."""
    async with scripted(replying(OK)) as registry, talk(impatient_gate(response=0.05), registry.endpoint) as agent:
        agent.channel.stalled = True
        agent.channel.send(raw)
        await agent.finished()

    assert agent.channel.closed


@pytest.mark.parametrize("lose", ["reset", "gone"])
async def test_a_lost_agent_closes_the_registrys_connection(talk: "Talk", scripted: "Scripted", lose: str) -> None:
    """When the agent is lost, noticed by a read or a write, the connection to the registry is closed."""
    async with scripted(replying(OK, OK)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        assert (await agent.ask("GET", "/v2/")).status == 200
        if lose == "reset":
            agent.channel.reset()
        else:
            agent.channel.gone = True
            agent.channel.send(GET)
        await agent.finished()

    assert agent.channel.closed


async def test_revocation_aborts_both_sides_at_once(
    channel: "MemoryChannel", caller: "Caller", scripted: "Scripted"
) -> None:
    """Cancelling a session in the middle of a pull aborts both sides, and CancelledError is raised."""
    traffic = Traffic()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await reader.readexactly(1)

    async with scripted(endless) as registry, asyncio.timeout(10):
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(
                impatient_gate().serve(channel, caller, registry.endpoint, traffic), name="gate session"
            )
            channel.send(GET)
            async with channel.changed:
                await channel.changed.wait_for(lambda: channel.outgoing)
            assert traffic.channels == 1
            serving.cancel()
        await registry.lost.wait()

    assert serving.cancelled()
    assert channel.aborted
    assert traffic.channels == 0


async def test_an_unexpected_exception_ends_only_the_session(talk: "Talk") -> None:
    """An unexpected exception is logged and ends the session, not the agent's SSH connection."""

    class FailingPolicies:
        def policy_of(self, _: AgentId) -> GroupPolicy:
            raise LookupError

    gate = Gate(GateContext(policies=FailingPolicies(), proofs=ListenerProofs()))

    with capture_logs() as lines:
        async with talk(gate, NOBODY) as agent:
            agent.channel.send(GET)
            await agent.finished()

    assert [(line["event"], line["error"]) for line in lines if line["log_level"] == "error"] == [
        ("gate session failed", "gate")
    ]


async def send_two_requests(agent: "Conversation") -> list[int]:
    """Send two requests and return their statuses."""
    return [(await agent.ask("GET", "/v2/")).status for _ in "12"]


async def test_requests_on_one_channel_share_one_connection(talk: "Talk", scripted: "Scripted") -> None:
    """Two requests on one channel use one connection to the registry."""
    async with scripted(replying(OK, OK)) as registry, talk(impatient_gate(), registry.endpoint) as agent:
        assert await send_two_requests(agent) == [200, 200]

    assert registry.connections == 1
