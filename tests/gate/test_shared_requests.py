"""Identical requests are sent once for all that wait, never staler than their own, on connections that are kept."""

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.test_exchange import OK, gate_with_timeouts, replying
from tests.until import until
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.registry_pool import MAX_ANSWER_BYTES, MAX_IDLE, Answer, RegistryPool
from tunnelmgr.gate.registry_slot import RegistrySlot
from tunnelmgr.gate.shared_requests import SharedRequests

if TYPE_CHECKING:
    from tests.gate.conftest import Script, Scripted, ScriptedRegistry, Talk

MANIFEST = "/v2/team/app/manifests/v1"
WIRE = b"GET /v2/team/app/manifests/v1 HTTP/1.1\r\nHost: a\r\n\r\n"
UNREACHABLE = Endpoint("127.0.0.1", 1)


def numbered(proceed: asyncio.Event, heads: list[bytes]) -> "Script":
    """Script a registry that answers each request, once it may proceed, with its number."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            body = b"%d" % len(heads)
            await proceed.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    return script


def outcome_of(pool: RegistryPool) -> "asyncio.Future[Answer | RegistryUnavailableError | None]":
    """Send a request on a pool's connection, and return the future of its outcome."""
    settled: asyncio.Future[Answer | RegistryUnavailableError | None] = asyncio.get_running_loop().create_future()
    pool.request("GET", WIRE, settled.set_result)
    return settled


async def asked(
    shared: SharedRequests, registry: "ScriptedRegistry", wire: bytes = WIRE, slots: Slots | None = None
) -> bytes:
    """Ask, and return the body of the answer."""
    answer = await shared.answer("GET", wire, RegistrySlot(registry.endpoint, slots or Slots(3), 10))
    assert answer is not None
    return answer.body


async def test_requests_that_wait_together_are_sent_once(scripted: "Scripted") -> None:
    """While one request is in progress, all that arrive are answered by one more; a different one is sent apart."""
    proceed, heads, shared = asyncio.Event(), list[bytes](), SharedRequests(10)
    shared.enter()

    async with scripted(numbered(proceed, heads)) as registry, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(asked(shared, registry), name="first")
        await until(lambda: len(heads) == 1)
        late = [tasks.create_task(asked(shared, registry), name=f"late {number}") for number in range(20)]
        other = tasks.create_task(asked(shared, registry, WIRE.replace(b"v1", b"v2")), name="other")
        await until(lambda: len(heads) == 2)
        proceed.set()
        await asyncio.wait([first, *late, other])
        shared.leave()

    # No request is answered by one that was sent before it arrived.
    assert first.result() == b"1"
    assert {task.result() for task in late} == {b"3"}
    assert other.result() == b"2"
    assert len(heads) == 3


async def test_a_request_that_is_given_up_does_not_disturb_the_others(scripted: "Scripted") -> None:
    """If one of those that wait leaves, the others get their answer; if all leave, nothing more is sent."""
    proceed, heads, shared = asyncio.Event(), list[bytes](), SharedRequests(10)
    shared.enter()

    async with scripted(numbered(proceed, heads)) as registry, asyncio.TaskGroup() as tasks:
        leaving, staying = (tasks.create_task(asked(shared, registry), name=name) for name in ("leaving", "staying"))
        late = tasks.create_task(asked(shared, registry), name="late")
        await until(lambda: len(heads) == 1)
        leaving.cancel()
        late.cancel()
        staying_too = tasks.create_task(asked(shared, registry), name="staying too")
        await asyncio.sleep(0)
        proceed.set()
        await asyncio.wait([staying, staying_too])
        shared.leave()

    assert leaving.cancelled()
    assert {staying.result(), staying_too.result()} <= {b"1", b"2"}
    assert len(heads) == 2


async def test_one_agents_requests_hold_one_slot_while_they_are_the_same(scripted: "Scripted") -> None:
    """Many requests of one agent join without a slot; another of its requests gets the slot that is left."""
    proceed, heads, shared, slots = asyncio.Event(), list[bytes](), SharedRequests(10), Slots(2)
    shared.enter()

    async with scripted(numbered(proceed, heads)) as registry, asyncio.TaskGroup() as tasks:
        same = [tasks.create_task(asked(shared, registry, WIRE, slots), name=f"same {number}") for number in range(9)]
        await until(lambda: len(heads) == 1)
        other = tasks.create_task(asked(shared, registry, WIRE.replace(b"v1", b"v2"), slots), name="other")
        await until(lambda: len(heads) == 2)
        proceed.set()
        await asyncio.wait([*same, other])
        shared.leave()

    assert sorted(task.result() for task in same) == [b"1", *[b"3"] * 8]
    assert (slots.take(), slots.take(), slots.take()) == (True, True, False)


async def test_an_agent_without_a_free_slot_does_not_delay_the_others(scripted: "Scripted") -> None:
    """If those that came late have no slot left, each asks for itself once it has one; an agent with one goes first."""
    proceed, heads, shared = asyncio.Event(), list[bytes](), SharedRequests(10)
    busy, first = Slots(1), Slots(1)
    shared.enter()

    async with scripted(numbered(proceed, heads)) as registry, asyncio.TaskGroup() as tasks:
        started = tasks.create_task(asked(shared, registry, WIRE, first), name="started")
        await until(lambda: len(heads) == 1)
        assert busy.take()
        late = [tasks.create_task(asked(shared, registry, WIRE, busy), name=f"late {number}") for number in range(3)]
        await asyncio.sleep(0)
        proceed.set()
        assert await started == b"1"
        await asyncio.sleep(0.02)
        assert len(heads) == 1
        assert await asked(shared, registry) == b"2"
        busy.release()
        await asyncio.wait(late)
        shared.leave()

    assert {task.result() for task in late} <= {b"3", b"4", b"5"}
    assert busy.take()


async def test_a_request_that_waited_for_its_slot_joins_one_that_was_sent_meanwhile(scripted: "Scripted") -> None:
    """A request whose agent gets a slot while the same request is in progress joins it, and gives the slot back."""
    proceed, heads, shared, busy = asyncio.Event(), list[bytes](), SharedRequests(10), Slots(1)
    shared.enter()

    async with scripted(numbered(proceed, heads)) as registry, asyncio.TaskGroup() as tasks:
        assert busy.take()
        waiting = tasks.create_task(asked(shared, registry, WIRE, busy), name="waiting")
        await asyncio.sleep(0)
        faster = tasks.create_task(asked(shared, registry), name="faster")
        await until(lambda: len(heads) == 1)
        busy.release()
        await until(busy.take)
        busy.release()
        proceed.set()
        await asyncio.wait([waiting, faster])
        shared.leave()

    assert (faster.result(), waiting.result()) == (b"1", b"2")


async def test_a_registry_that_cannot_be_reached_fails_each_request() -> None:
    """Every request that waits gets an error of its own."""
    shared = SharedRequests(10)
    shared.enter()

    outcomes = await asyncio.gather(
        *(shared.answer("GET", WIRE, RegistrySlot(UNREACHABLE, Slots(3), 10)) for _ in range(3)), return_exceptions=True
    )
    shared.leave()

    assert [type(outcome) for outcome in outcomes] == [RegistryUnavailableError] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert "127.0.0.1:1 cannot be reached" in str(outcomes[0])


async def test_a_silent_registry_is_503(talk: "Talk", scripted: "Scripted") -> None:
    """A shared request that gets no answer within the timeout is answered 503."""
    async with (
        scripted(replying(b"")) as registry,
        talk(gate_with_timeouts(response=0.02), registry.endpoint) as agent,
    ):
        answer = await agent.ask("GET", MANIFEST)

    assert answer.status == 503
    assert "did not answer within 0.02 s" in answer.message


def closing(answer: bytes) -> "Script":
    """Script a registry that sends one response and closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    return script


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 O",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"x" * 40_000,
    ],
)
async def test_an_incomplete_or_invalid_answer_is_503(talk: "Talk", scripted: "Scripted", answer: bytes) -> None:
    """An answer that is not complete or not HTTP reaches no client, and the channel continues."""
    async with scripted(closing(answer)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        answers = [await agent.ask("GET", MANIFEST) for _ in "12"]

    assert [one.status for one in answers] == [503, 503]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_ANSWER_BYTES + 1) + bytes(MAX_ANSWER_BYTES + 1),
    ],
    ids=["chunked", "large"],
)
async def test_what_does_not_fit_in_memory_is_streamed(talk: "Talk", scripted: "Scripted", answer: bytes) -> None:
    """A chunked or a large response is asked for on the agent's own connection."""
    async with scripted(replying(answer)) as registry, talk(gate_with_timeouts(), registry.endpoint) as agent:
        streamed = await agent.ask("GET", MANIFEST)

    assert streamed.status == 200
    assert streamed.body in {b"abc", bytes(MAX_ANSWER_BYTES + 1)}
    assert registry.connections == 2


async def test_a_connection_is_kept_while_there_are_channels(talk: "Talk", scripted: "Scripted") -> None:
    """Channels one after another use one connection; with the last channel it closes."""
    gate = gate_with(GroupPolicy.build("ci"))

    async with scripted(replying(OK, OK, OK, OK)) as registry:
        async with talk(gate, registry.endpoint) as agent:
            await agent.ask("GET", MANIFEST)
            async with talk(gate, registry.endpoint) as another:
                await another.ask("GET", MANIFEST)
            await agent.ask("HEAD", MANIFEST)
        await asyncio.wait_for(registry.lost.wait(), 10)

    assert registry.connections == 1


async def test_interim_responses_are_skipped_and_surplus_bytes_end_the_connection(
    talk: "Talk", scripted: "Scripted"
) -> None:
    """An interim response is not the answer, and bytes after an answer are not the next one."""
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"

    async with (
        scripted(replying(early + OK + OK, OK)) as registry,
        talk(gate_with_timeouts(), registry.endpoint) as agent,
    ):
        answers = [await agent.ask("GET", MANIFEST) for _ in "12"]

    assert [(answer.status, answer.body) for answer in answers] == [(200, b"ok")] * 2
    assert registry.connections == 2


async def test_bytes_without_a_request_end_an_idle_connection(scripted: "Scripted") -> None:
    """A registry that sends something on an idle connection loses it, and the next request has another."""
    more = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await more.wait()
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")

    async with scripted(script) as registry:
        pool = RegistryPool(registry.endpoint, 10)
        first = await outcome_of(pool)
        more.set()
        await asyncio.wait_for(registry.lost.wait(), 10)
        second = await outcome_of(pool)
        pool.close()

    assert isinstance(first, Answer)
    assert second == first
    assert registry.connections == 2


def closing_the_second_time(with_bytes: bytes) -> "Script":
    """Script a registry that closes its first connection at the second request, after some bytes."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(with_bytes if connections == 1 else OK)

    return script


@pytest.mark.parametrize(("with_bytes", "status", "connections"), [(b"", 200, 2), (b"HTTP/1.1 2", 503, 1)])
async def test_a_request_on_a_connection_that_closes_is_sent_once_more(
    talk: "Talk", scripted: "Scripted", with_bytes: bytes, status: int, connections: int
) -> None:
    """If an idle connection closes when a request arrives, it is sent again, unless a response had started."""
    async with (
        scripted(closing_the_second_time(with_bytes)) as registry,
        talk(gate_with_timeouts(), registry.endpoint) as agent,
    ):
        await agent.ask("GET", MANIFEST)
        answer = await agent.ask("GET", MANIFEST)

        assert answer.status == status
        assert registry.connections == connections


async def test_few_connections_are_kept(scripted: "Scripted") -> None:
    """After many requests at once, only so many connections stay."""
    proceed, heads = asyncio.Event(), list[bytes]()

    async with scripted(numbered(proceed, heads)) as registry:
        pool = RegistryPool(registry.endpoint, 10)
        outcomes = [outcome_of(pool) for _ in range(MAX_IDLE + 4)]
        await until(lambda: len(heads) == MAX_IDLE + 4)
        proceed.set()
        await asyncio.gather(*outcomes)
        await asyncio.gather(*(outcome_of(pool) for _ in range(MAX_IDLE)))
        pool.close()

    assert registry.connections == MAX_IDLE + 4


async def test_a_pool_that_closes_while_a_request_is_in_progress_keeps_nothing(scripted: "Scripted") -> None:
    """The request is answered, and then its connection closes too; one that is being opened is given up."""
    proceed, heads = asyncio.Event(), list[bytes]()

    async with scripted(numbered(proceed, heads)) as registry:
        pool = RegistryPool(registry.endpoint, 10)
        outcome = outcome_of(pool)
        await until(lambda: heads)
        opening = outcome_of(pool)
        await asyncio.sleep(0)
        pool.close()
        proceed.set()
        answer = await outcome
        assert "given up" in str(await opening)
        await asyncio.wait_for(registry.lost.wait(), 10)

    assert answer == Answer(answer.head, b"1") if answer else False


async def test_a_registry_that_resets_is_an_error(scripted: "Scripted") -> None:
    """A connection that is reset fails its request."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with scripted(reset) as registry:
        pool = RegistryPool(registry.endpoint, 10)
        outcome = await outcome_of(pool)
        pool.close()

    assert isinstance(outcome, RegistryUnavailableError)
    assert "without a complete response" in str(outcome)


async def test_a_wake_up_without_bytes_changes_nothing(scripted: "Scripted") -> None:
    """An idle connection of which the loop reports nothing new stays usable, and its alarm stays silent."""
    async with scripted(replying(OK, OK)) as registry:
        pool = RegistryPool(registry.endpoint, 0.2)
        first = await outcome_of(pool)
        pool._idle[0]._on_readable()
        pool._idle[0]._on_late()
        second = await outcome_of(pool)
        pool.close()

    assert first == second == Answer(first.head, b"ok") if isinstance(first, Answer) else False
    assert registry.connections == 1
