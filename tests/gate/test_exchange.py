"""The gate when an agent misbehaves, or the registry is unreachable: it responds or closes the channel."""

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
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.gate.context import GateContext
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.timeouts import Timeouts
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.gate.uploads import UploadProofs

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, Scripted, Talk
    from tests.gate.memory_channel import MemoryChannel
    from tunnelmgr.gate.caller import Caller


HOST = b"Host: localhost:5000\r\n"
UNREACHABLE = Endpoint("127.0.0.1", 1)
GET = b"GET /v2/team/app/blobs/sha256:" + b"0" * 64 + b" HTTP/1.1\r\nHost: localhost:5000\r\n\r\n"
PUT = b"PUT /v2/team/app/manifests/v1 HTTP/1.1\r\n" + HOST
LIST = "/v2/team/app/tags/list"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def gate_with_timeouts(**seconds: float) -> Gate:
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


async def test_the_gate_shows_an_agent_its_identity_without_a_registry(talk: "Talk") -> None:
    """The well-known path shows the agent its identity, and a proof for a nonce, while the registry is unreachable."""
    async with talk(gate_with_timeouts(), UNREACHABLE) as agent:
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
    gate = Gate(replace(gate_with_timeouts().context, requests=records))
    question = probe_request(caller.listener, "0aF9")
    async with talk(gate, UNREACHABLE) as agent:
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
    exact, otherwise = (replace(record, took=0.0, latency=0.0) for record in records.all[:2])
    assert exact == otherwise


async def test_a_probe_whose_reply_is_not_read_ends_its_channel(talk: "Talk", caller: "Caller") -> None:
    """A channel whose agent does not read the reply to a probe is closed."""
    async with talk(gate_with_timeouts(response=0.01), UNREACHABLE) as agent:
        agent.channel.stalled = True
        agent.channel.send(probe_request(caller.listener, "0aF9"))
        await agent.finished()


@pytest.mark.parametrize(
    "lines",
    [("Tunnelmgr-Nonce: xyz",), ("Tunnelmgr-Nonce: " + "a" * 129,), ("Tunnelmgr-Nonce: a", "Tunnelmgr-Nonce: b")],
)
async def test_a_nonce_is_short_and_hexadecimal(talk: "Talk", lines: tuple[str, ...]) -> None:
    """A nonce that is empty, too long, repeated or not hexadecimal gets 400 and no proof."""
    async with talk(gate_with_timeouts(), UNREACHABLE) as agent:
        refused = await agent.ask("GET", "/.well-known/tunnelmgr", *lines)
        agent.channel.end()

    assert refused.status == 400


async def test_an_unreachable_registry_is_503_and_the_channel_continues(talk: "Talk") -> None:
    """A request to an unreachable registry gets 503, and the next request on the channel is served."""
    async with talk(gate_with_timeouts(), UNREACHABLE) as agent:
        away = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [(answer.status, answer.code) for answer in away] == [(503, "UNAVAILABLE")] * 2
    assert away[0].message.startswith("tunnelmgr: the registry at 127.0.0.1:1 cannot be reached")


async def test_a_push_to_an_unreachable_registry_is_503(talk: "Talk") -> None:
    """A push to an unreachable registry gets 503 without 100 Continue, and the channel ends."""
    async with talk(gate_with_timeouts(), UNREACHABLE) as agent:
        agent.channel.send(PUT + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        away = await agent.answer("PUT")
        agent.channel.end()

    assert away.status == 503
    assert agent.interim == []


async def test_an_agent_that_closes_within_a_body_ends_the_upload(talk: "Talk", scripted: "Scripted") -> None:
    """If the agent closes within a body, the registry's connection closes too, so the upload is not completed."""

    async def reading(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(100)

    async with scripted(reading) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 100\r\n\r\nabc")
        agent.channel.end()
        await agent.finished()
        async with asyncio.timeout(10):
            await registry.lost.wait()

    assert not agent.channel.outgoing


async def test_a_body_that_stops_arriving_is_400(talk: "Talk", scripted: "Scripted") -> None:
    """A body that stops arriving gets 400 after the timeout, and the upload ends."""
    async with scripted(replying(b"")) as registry, talk(gate_with_timeouts(body=0.02), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 100\r\n\r\nabc")
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 400


async def test_a_head_that_is_incomplete_at_the_timeout_is_400(talk: "Talk") -> None:
    """A head that is incomplete at the timeout gets 400, however slowly its bytes arrive."""
    async with talk(gate_with_timeouts(head=0.02), UNREACHABLE) as agent:
        agent.channel.send(b"GET /v2/ HT")
        refused = await agent.answer()
        agent.channel.end()

    assert refused.status == 400


async def test_a_head_may_arrive_in_pieces(talk: "Talk") -> None:
    """A head that arrives in pieces within the timeout is served."""
    async with talk(gate_with_timeouts(), UNREACHABLE) as agent:
        for byte in b"GET /.well-known/tunnelmgr HTTP/1.1\r\n" + HOST + b"\r\n":
            agent.channel.send(bytes([byte]))
        response = await agent.answer()

    assert response.status == 200


async def test_an_agent_that_closes_within_a_head_gets_nothing(talk: "Talk") -> None:
    """An agent that closes within a head gets no response and leaves no record."""
    records = Records()
    gate = Gate(replace(gate_with_timeouts().context, requests=records))

    async with talk(gate, UNREACHABLE) as agent:
        agent.channel.send(b"GET /v2/ HT")

    assert not agent.channel.outgoing
    assert records.all == []


async def test_a_response_that_keeps_arriving_is_not_cut_off(talk: "Talk", scripted: "Scripted") -> None:
    """A response may take longer than the timeout, which bounds only the time without progress."""
    loop = asyncio.get_running_loop()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        until = loop.time() + 1.5
        while loop.time() < until:
            writer.write(b"x")
            await asyncio.sleep(0)

    async with scripted(trickle) as registry, talk(gate_with_timeouts(response=0.7), registry.endpoint) as agent:
        answered = await agent.ask("GET", "/v2/")

    assert answered.status == 200


async def test_an_idle_channel_is_closed_after_the_timeout(talk: "Talk") -> None:
    """A channel without a request is closed after the timeout, without a response."""
    async with talk(gate_with_timeouts(idle=0.02), UNREACHABLE) as agent:
        await agent.finished()

    assert not agent.channel.outgoing


async def test_discarding_a_refused_body_has_a_timeout(talk: "Talk") -> None:
    """An agent that neither sends nor ends its refused body does not keep the channel open."""
    async with talk(gate_with_timeouts(drain=0.02), UNREACHABLE) as agent:
        agent.channel.send(b"\x00")
        refused = await agent.answer()
        await agent.finished()

    assert refused.status == 400


@pytest.mark.parametrize("raw", [GET, b"GET /.well-known/tunnelmgr HTTP/1.1\r\n" + HOST + b"\r\n"])
async def test_an_agent_that_does_not_read_its_response_loses_the_channel(
    talk: "Talk", scripted: "Scripted", raw: bytes
) -> None:
    """An agent that does not read a response, the registry's or the gate's own, loses its channel after the timeout."""
    async with scripted(replying(OK)) as registry, talk(gate_with_timeouts(response=0.05), registry.endpoint) as agent:
        agent.channel.stalled = True
        agent.channel.send(raw)
        await agent.finished()

    assert agent.channel.closed


@pytest.mark.parametrize("lose", ["reset", "gone"])
async def test_a_lost_agent_closes_the_registrys_connection(talk: "Talk", scripted: "Scripted", lose: str) -> None:
    """When the agent is lost, noticed by a read or a write, the connection to the registry is closed."""
    async with scripted(replying(OK, OK)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
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
                gate_with_timeouts().serve(channel, caller, Forward("registry", (), registry.endpoint), traffic),
                name="gate session",
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
        def policy_of(self, _: AgentId, __: str) -> GroupPolicy:
            raise LookupError

    gate = Gate(GateContext(policies=FailingPolicies(), proofs=ListenerProofs(), uploads=UploadProofs(b"secret")))

    with capture_logs() as lines:
        async with talk(gate, UNREACHABLE) as agent:
            agent.channel.send(GET)
            await agent.finished()

    assert [(line["event"], line["error"]) for line in lines if line["log_level"] == "error"] == [
        ("gate session failed", "gate")
    ]


async def test_requests_on_one_channel_share_one_connection(talk: "Talk", scripted: "Scripted") -> None:
    """Two requests on one channel use one connection to the registry."""
    async with scripted(replying(OK, OK)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        assert await send_two_requests(agent) == [200, 200]

    assert registry.connections == 1


async def send_two_requests(agent: "Conversation") -> list[int]:
    """Send two requests and return their statuses."""
    return [(await agent.ask("GET", "/v2/")).status for _ in "12"]
