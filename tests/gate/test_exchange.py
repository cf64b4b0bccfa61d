"""The gate when a registry or an agent misbehaves: an answer or a closed channel, and nothing left behind."""

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


def impatient(**seconds: float) -> Gate:
    """Make a gate that may push, and waits as told; a wait that is to run out is a few milliseconds."""
    policy = GroupPolicy.build("ci", push=("**",), immutable_tags=("release-*",))
    return gate_with(policy, timeouts=Timeouts(**seconds))


def replying(*answers: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]:
    """Script a registry that gives each request's head the next answer, then waits for the end."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await reader.read()

    return script  # type: ignore[return-value]


def hanging_up(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None]"]:
    """Script a registry that answers once and closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    return script  # type: ignore[return-value]


async def test_the_gate_says_who_the_agent_is_without_a_registry(talk: "Talk") -> None:
    """The well-known path never reaches it."""
    async with talk(impatient(), NOBODY) as agent:
        told = await agent.ask("GET", "/.well-known/tunnelmgr")
        proved = await agent.ask("GET", "/.well-known/tunnelmgr", "Tunnelmgr-Nonce: 0aF9")
        asked = await agent.ask("HEAD", "/.well-known/tunnelmgr")

    known = {"agent": "static:builder-1", "group": "ci", "controller": "registry-1"}
    assert json.loads(told.body) == known
    assert json.loads(proved.body) == known | {"proof": "0aF9@127.0.0.1:5000"}
    assert (asked.status, asked.body) == (200, b"")


async def test_a_probe_gets_what_it_would_get_if_it_were_written_otherwise(talk: "Talk", caller: "Caller") -> None:
    """The same answer and the same record; known by its exact bytes, it is only not read in full."""
    records = Records()
    gate = Gate(replace(impatient().context, requests=records))
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


async def test_a_probe_whose_answer_is_not_taken_ends_its_channel(talk: "Talk", caller: "Caller") -> None:
    """Nothing is kept for an agent that does not read."""
    async with talk(impatient(response=0.01), NOBODY) as agent:
        agent.channel.stalled = True
        agent.channel.send(probe_request(caller.listener, "0aF9"))
        await agent.finished()


@pytest.mark.parametrize(
    "lines",
    [("Tunnelmgr-Nonce: xyz",), ("Tunnelmgr-Nonce: " + "a" * 129,), ("Tunnelmgr-Nonce: a", "Tunnelmgr-Nonce: b")],
)
async def test_a_nonce_is_short_and_hexadecimal(talk: "Talk", lines: tuple[str, ...]) -> None:
    """Nothing else gets a proof."""
    async with talk(impatient(), NOBODY) as agent:
        refused = await agent.ask("GET", "/.well-known/tunnelmgr", *lines)
        agent.channel.end()

    assert refused.status == 400


async def test_a_registry_that_is_away_is_503_and_the_channel_goes_on(talk: "Talk") -> None:
    """The agent may ask again; the next answer may be better."""
    async with talk(impatient(), NOBODY) as agent:
        away = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [(answer.status, answer.code) for answer in away] == [(503, "UNAVAILABLE")] * 2
    assert away[0].message.startswith("tunnelmgr: the registry at 127.0.0.1:1 cannot be reached")


async def test_a_push_to_a_registry_that_is_away_is_503(talk: "Talk") -> None:
    """Its body is drained and the channel ends; nobody was told to continue."""
    async with talk(impatient(), NOBODY) as agent:
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
async def test_a_registry_that_does_not_answer_in_http_is_503(
    talk: "Talk", scripted: "Scripted", answer: bytes
) -> None:
    """It died in mid-head, or is no registry."""
    async with scripted(hanging_up(answer)) as registry, talk(impatient(), registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/")

    assert (refused.status, refused.code) == (503, "UNAVAILABLE")


async def test_a_registry_that_dies_in_mid_body_ends_the_channel(talk: "Talk", scripted: "Scripted") -> None:
    """The agent must see that its blob is not whole, so nothing follows what came."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async with scripted(hanging_up(half)) as registry, talk(impatient(), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert agent.channel.closed
    assert bytes(agent.channel.outgoing).endswith(b"\r\n\r\nhalf")


async def test_a_registry_that_resets_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A reset is no answer."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        import socket  # noqa: PLC0415
        import struct  # noqa: PLC0415

        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with scripted(reset) as registry, talk(impatient(), registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/")

    assert refused.status == 503


async def test_a_silent_registry_is_503_in_time(talk: "Talk", scripted: "Scripted") -> None:
    """The wait for its head is bounded, with a body as without."""
    async with scripted(replying(b"", b"")) as registry, talk(impatient(response=0.02), registry.endpoint) as agent:
        bodiless = await agent.ask("GET", "/v2/")
        agent.channel.send(PUT + b"Content-Length: 3\r\n\r\nabc")
        with_body = await agent.answer("PUT")
        agent.channel.end()

    assert (bodiless.status, with_body.status) == (503, 503)
    assert "did not answer within 0.02 s" in with_body.message


async def test_a_registry_that_stops_in_mid_body_ends_the_channel(talk: "Talk", scripted: "Scripted") -> None:
    """The wait for more is bounded too."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    async with scripted(replying(half)) as registry, talk(impatient(response=0.05), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert bytes(agent.channel.outgoing).endswith(b"half")


async def test_a_redirect_elsewhere_is_502_and_says_what_to_do(talk: "Talk", scripted: "Scripted") -> None:
    """Trap 24: it would lead past the tunnel."""
    away = (
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://bucket.s3.amazonaws.com/x\r\nContent-Length: 0\r\n\r\n"
    )

    async with scripted(replying(away)) as registry, talk(impatient(), registry.endpoint) as agent:
        refused = await agent.ask("GET", "/v2/")

    assert refused.status == 502
    assert "set storage.redirect.disable" in refused.message


async def test_interim_answers_are_kept_from_the_agent(talk: "Talk", scripted: "Scripted") -> None:
    """Only the final one is the answer."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK

    async with scripted(replying(early)) as registry, talk(impatient(), registry.endpoint) as agent:
        answered = await agent.ask("GET", "/v2/")

    assert (answered.status, answered.body) == (200, b"ok")
    assert agent.interim == []


async def test_a_chunked_answer_is_chunked_to_the_agent(talk: "Talk", scripted: "Scripted") -> None:
    """And the connection serves the next request."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"

    async with scripted(replying(chunked, OK)) as registry, talk(impatient(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.body for answer in answers] == [b"abc", b"ok"]
    assert registry.connections == 1


async def test_a_chunked_answer_that_is_broken_off_is_seen_to_be(talk: "Talk", scripted: "Scripted") -> None:
    """The agent gets no last chunk."""
    broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n"

    async with scripted(replying(broken)) as registry, talk(impatient(), registry.endpoint) as agent:
        agent.channel.send(GET)
        await agent.finished()

    assert b"0\r\n\r\n" not in agent.channel.outgoing


async def test_an_answer_until_close_ends_in_a_last_chunk(talk: "Talk", scripted: "Scripted") -> None:
    """The agent can tell that it came whole, and its own channel goes on."""
    body = b"x" * 200_000

    async with (
        scripted(hanging_up(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + body)) as registry,
        talk(impatient(), registry.endpoint) as agent,
    ):
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.body for answer in answers] == [body] * 2
    assert registry.connections == 2


async def test_a_connection_that_ended_while_idle_is_replaced(talk: "Talk", scripted: "Scripted") -> None:
    """The agent does not notice."""
    async with scripted(hanging_up(OK)) as registry, talk(impatient(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "123"]

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert registry.connections == 3


def closing_the_second_time(counter: list[int]) -> Callable[..., "asyncio.Future[None]"]:
    """Script a registry that on its first connection answers once, and hangs up on the next request."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counter.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        if len(counter) > 1:
            writer.write(OK)

    return script  # type: ignore[return-value]


async def test_a_get_that_met_the_registrys_close_is_sent_again(talk: "Talk", scripted: "Scripted") -> None:
    """RFC 9110, section 9.2.2: it is safe to."""
    async with scripted(closing_the_second_time([])) as registry, talk(impatient(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.status for answer in answers] == [200, 200]
    assert registry.connections == 2


async def test_a_post_that_met_the_registrys_close_is_not(talk: "Talk", scripted: "Scripted") -> None:
    """It may have been carried out."""
    async with scripted(closing_the_second_time([])) as registry, talk(impatient(), registry.endpoint) as agent:
        await agent.ask("GET", "/v2/")
        refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/")

    assert refused.status == 503
    assert registry.connections == 1


async def test_words_that_nobody_asked_for_are_nobodys_answer(talk: "Talk", scripted: "Scripted") -> None:
    """A registry that sends too much is not kept, or its surplus would answer the next request."""
    async with scripted(replying(OK + OK)) as registry, talk(impatient(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", "/v2/") for _ in "12"]

    assert [answer.status for answer in answers] == [200, 200]
    assert registry.connections == 2


async def test_an_early_refusal_is_heard_while_the_body_still_comes(talk: "Talk", scripted: "Scripted") -> None:
    """No deadlock: the answer is passed on, the rest of the body is nobody's, the channel ends."""
    full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull"

    async with scripted(replying(full)) as registry, talk(impatient(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 1000000\r\n\r\nabc")
        refused = await agent.answer("PUT")
        agent.channel.end()
        await agent.finished()

    assert (refused.status, refused.body) == (413, b"full")
    assert refused.headers["connection"] == "close"
    assert agent.channel.ended


async def test_an_early_answer_is_heard_by_an_upload_that_is_stuck(talk: "Talk", scripted: "Scripted") -> None:
    """The registry answers and reads no more, while megabytes wait to be sent."""
    full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull"
    more = asyncio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await more.wait()
        writer.write(full)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with scripted(stuck) as registry, talk(impatient(drain=0.02), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(32_000_000))
        more.set()
        refused = await agent.answer("PUT")
        await agent.finished()

    assert refused.status == 413


async def test_a_whole_body_whose_sending_was_cut_short_ends_only_the_registrys_connection(
    talk: "Talk", scripted: "Scripted"
) -> None:
    """All of it was read from the agent, so the next request is where it should be."""
    size = 32_000_000
    full = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull"

    async with scripted(replying(full)) as registry, talk(impatient(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        refused = await agent.answer("PUT")
        told = await agent.ask("GET", "/.well-known/tunnelmgr")

    assert (refused.status, told.status) == (413, 200)


async def test_a_registry_that_hangs_up_on_a_body_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """Without an answer there is only one to give."""
    async with scripted(hanging_up(b"")) as registry, talk(impatient(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(16_000_000))
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 503


async def test_a_registry_that_takes_no_more_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """Sending is bounded in time."""

    async def stuck(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with scripted(stuck) as registry, talk(impatient(response=0.05), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 64000000\r\n\r\n" + bytes(32_000_000))
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 503


async def test_an_agent_that_ends_in_mid_body_takes_the_upload_with_it(talk: "Talk", scripted: "Scripted") -> None:
    """The registry must not take a part for the whole."""

    async def reading(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(100)

    async with scripted(reading) as registry, talk(impatient(), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 100\r\n\r\nabc")
        agent.channel.end()
        await agent.finished()
        async with asyncio.timeout(10):
            await registry.lost.wait()

    assert not agent.channel.outgoing


async def test_a_body_that_stops_coming_is_400(talk: "Talk", scripted: "Scripted") -> None:
    """The wait for it is bounded, and the upload is given up."""
    async with scripted(replying(b"")) as registry, talk(impatient(body=0.02), registry.endpoint) as agent:
        agent.channel.send(PUT + b"Content-Length: 100\r\n\r\nabc")
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert refused.status == 400


async def test_a_head_that_is_not_whole_in_time_is_400(talk: "Talk") -> None:
    """Nobody holds a channel by dribbling."""
    async with talk(impatient(head=0.02), NOBODY) as agent:
        agent.channel.send(b"GET /v2/ HT")
        refused = await agent.answer()
        agent.channel.end()

    assert refused.status == 400


async def test_a_head_may_come_in_pieces(talk: "Talk") -> None:
    """In time is enough."""
    async with talk(impatient(), NOBODY) as agent:
        for byte in b"GET /.well-known/tunnelmgr HTTP/1.1\r\n" + HOST + b"\r\n":
            agent.channel.send(bytes([byte]))
        told = await agent.answer()

    assert told.status == 200


async def test_an_agent_that_ends_in_mid_head_is_let_go(talk: "Talk") -> None:
    """There is nobody to answer, and nothing to record."""
    records = Records()
    gate = Gate(replace(impatient().context, requests=records))

    async with talk(gate, NOBODY) as agent:
        agent.channel.send(b"GET /v2/ HT")

    assert not agent.channel.outgoing
    assert records.all == []


async def test_an_answer_that_keeps_coming_is_not_cut_off(talk: "Talk", scripted: "Scripted") -> None:
    """The bound is on silence, not on the whole."""
    loop = asyncio.get_running_loop()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        until = loop.time() + 0.5
        while loop.time() < until:
            writer.write(b"x")
            await asyncio.sleep(0)

    async with scripted(trickle) as registry, talk(impatient(response=0.2), registry.endpoint) as agent:
        answered = await agent.ask("GET", "/v2/")

    assert answered.status == 200


async def test_an_idle_channel_is_closed_in_time(talk: "Talk") -> None:
    """Without a word: no request was begun."""
    async with talk(impatient(idle=0.02), NOBODY) as agent:
        await agent.finished()

    assert not agent.channel.outgoing


async def test_an_agent_that_does_not_end_its_refused_request_is_not_waited_for(talk: "Talk") -> None:
    """The drain is bounded in time."""
    async with talk(impatient(drain=0.02), NOBODY) as agent:
        agent.channel.send(b"\x00")
        refused = await agent.answer()
        await agent.finished()

    assert refused.status == 400


@pytest.mark.parametrize("raw", [GET, b"GET /.well-known/tunnelmgr HTTP/1.1\r\n" + HOST + b"\r\n"])
async def test_an_agent_that_does_not_take_its_answer_is_let_go(talk: "Talk", scripted: "Scripted", raw: bytes) -> None:
    """Neither the registry's answers nor our own wait for ever."""
    async with scripted(replying(OK)) as registry, talk(impatient(response=0.05), registry.endpoint) as agent:
        agent.channel.stalled = True
        agent.channel.send(raw)
        await agent.finished()

    assert agent.channel.closed


@pytest.mark.parametrize("lose", ["reset", "gone"])
async def test_an_agent_that_is_lost_frees_the_registry(talk: "Talk", scripted: "Scripted", lose: str) -> None:
    """Whether it is noticed by reading or by writing."""
    async with scripted(replying(OK, OK)) as registry, talk(impatient(), registry.endpoint) as agent:
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
    """In the middle of a pull, and the cancellation is not swallowed."""
    traffic = Traffic()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await reader.readexactly(1)

    async with scripted(endless) as registry, asyncio.timeout(10):
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(
                impatient().serve(channel, caller, registry.endpoint, traffic), name="gate session"
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


async def test_whatever_else_goes_wrong_stays_in_the_session(talk: "Talk") -> None:
    """Trap 5: an exception that escaped would close the agent's SSH connection."""

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


async def ask_all(agent: "Conversation") -> list[int]:
    """Ask twice and return the statuses."""
    return [(await agent.ask("GET", "/v2/")).status for _ in "12"]


async def test_requests_on_one_channel_share_one_connection(talk: "Talk", scripted: "Scripted") -> None:
    """The registry is dialled once."""
    async with scripted(replying(OK, OK)) as registry, talk(impatient(), registry.endpoint) as agent:
        assert await ask_all(agent) == [200, 200]

    assert registry.connections == 1
