"""Requests of a group that has limits, through the gate to a real docker-registry."""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.conftest import Records
from tests.gate.docker_registry import MANIFEST_TYPE, Registry, digest_of
from tests.gate.memory_channel import MemoryChannel
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.group_limits import GroupLimits
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.deadline import Deadline
from tunnelmgr.gate import group_limiter, paced_channel
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.group_limiter import GroupLimiter
from tunnelmgr.gate.paced_channel import PacedChannel

if TYPE_CHECKING:
    from tests.gate.conftest import Talk

MANIFEST = "/v2/team/app/manifests/v1"
OTHER = AgentId("static:builder-2")


def limited(limits: GroupLimits, records: Records | None = None) -> Gate:
    """Return a gate whose only group has limits."""
    policy = GroupPolicy.build("ci", push=["team/*"], limits=limits)
    return gate_with(policy, requests=records or Records())


async def test_a_request_beyond_the_rate_waits_for_its_turn(talk: "Talk", registry: Registry) -> None:
    """Requests are slowed down rather than refused: a client notices nothing but time."""
    gate = limited(GroupLimits(requests_per_second=20.0))
    async with talk(gate, registry.endpoint) as client:
        statuses = [(await client.ask("GET", MANIFEST, f"Accept: {MANIFEST_TYPE}")).status for _ in range(50)]

    assert set(statuses) == {HTTPStatus.OK}
    (health,) = gate.context.limiters.health()
    assert (health.limit, health.refused) == ("requests_per_second", 0)
    assert health.waits > 0


async def test_a_request_that_waits_in_vain_gets_429(
    talk: "Talk", registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal has the code of the OCI specification, says when to try again, and the channel continues."""
    monkeypatch.setattr(group_limiter, "PATIENCE", 0.01)
    records = Records()
    async with talk(limited(GroupLimits(requests_per_second=0.1), records), registry.endpoint) as client:
        first, second = await client.ask("GET", "/v2/"), await client.ask("GET", "/v2/")
        known = await client.ask("GET", "/.well-known/tunnelmgr")

    assert (first.status, second.status, second.code) == (
        HTTPStatus.OK,
        HTTPStatus.TOO_MANY_REQUESTS,
        "TOOMANYREQUESTS",
    )
    assert second.headers["retry-after"] == "10"
    assert "group ci has reached its limit of requests_per_second" in second.message
    assert known.status == HTTPStatus.OK
    refused = records.all[1]
    assert (refused.verdict, refused.status, refused.error) == (
        "allowed",
        HTTPStatus.TOO_MANY_REQUESTS,
        "limit-exceeded",
    )


async def test_a_push_that_waits_in_vain_gets_429(
    talk: "Talk", registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body stays unread, so the channel ends."""
    monkeypatch.setattr(group_limiter, "PATIENCE", 0.01)
    async with talk(limited(GroupLimits(requests_per_second=0.1)), registry.endpoint) as client:
        await client.ask("GET", "/v2/")
        refused = await client.ask("PUT", MANIFEST, f"Content-Type: {MANIFEST_TYPE}", body=b"{}")

    assert (refused.status, refused.headers["connection"]) == (HTTPStatus.TOO_MANY_REQUESTS, "close")


async def test_pulls_beyond_the_number_wait_for_another_to_end(
    talk: "Talk", registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second agent's pull starts when the first one's has ended; a manifest needs no place."""
    monkeypatch.setattr(group_limiter, "PATIENCE", 10.0)
    target = f"/v2/team/app/blobs/{registry.push_blob('team/app', b'x' * 300_000)}"
    pull = f"GET {target} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n"
    gate = limited(GroupLimits(concurrent_pulls=1))
    async with (
        talk(gate, registry.endpoint) as one,
        talk(gate, registry.endpoint, OTHER) as two,
        asyncio.TaskGroup() as tasks,
    ):
        one.channel.stalled = True
        one.channel.send(pull.encode())
        await until(lambda: one.traffic.from_agent)
        waiting = tasks.create_task(two.ask("GET", target), name="second pull")
        await until(lambda: any(each.waiting for each in gate.context.limiters.health()))
        async with talk(gate, registry.endpoint, OTHER) as third:
            assert (await third.ask("GET", MANIFEST, f"Accept: {MANIFEST_TYPE}")).status == HTTPStatus.OK

        one.serving.cancel()

        assert (await waiting).status == HTTPStatus.OK


async def test_bytes_to_agents_keep_to_the_rate(talk: "Talk", registry: Registry) -> None:
    """A blob arrives whole, in pieces, and no faster than the group may pull."""
    content = bytes(range(256)) * 1200
    digest = registry.push_blob("team/app", content)
    rate, loop = 250_000.0, asyncio.get_running_loop()
    gate = limited(GroupLimits(pull_rate=rate))
    async with talk(gate, registry.endpoint) as client:
        began = loop.time()
        pulled = await client.ask("GET", f"/v2/team/app/blobs/{digest}")
        elapsed = loop.time() - began

    assert digest_of(pulled.body) == digest
    largest = rate / paced_channel.TURNS_PER_SECOND
    assert len(content) <= rate + rate * elapsed + largest
    assert gate.context.limiters.health()[0].waits > 0


async def test_bytes_from_agents_keep_to_the_rate(talk: "Talk", registry: Registry) -> None:
    """A pushed blob is read no faster than the group may push, and arrives whole."""
    content = bytes(reversed(range(256))) * 1200
    rate, loop = 250_000.0, asyncio.get_running_loop()
    gate = limited(GroupLimits(push_rate=rate))
    async with talk(gate, registry.endpoint) as client:
        started = await client.ask("POST", "/v2/team/app/blobs/uploads/")
        target = started.headers["location"].partition("localhost:5000")[2]
        began = loop.time()
        head = f"PUT {target}&digest={digest_of(content)} HTTP/1.1\r\nHost: localhost:5000\r\n"
        client.channel.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content))
        for start in range(0, len(content), 32768):
            client.channel.send(content[start : start + 32768])
        pushed = await client.answer("PUT")
        elapsed = loop.time() - began

    assert pushed.status == HTTPStatus.CREATED
    assert len(content) <= rate + rate * elapsed + 2 * 32768
    assert gate.context.limiters.health()[0].waits > 0


async def test_the_bytes_of_small_bodies_count_too(talk: "Talk", registry: Registry) -> None:
    """A push in pieces that each arrive with their request's head is as slow as one that arrives as a stream."""
    gate = limited(GroupLimits(push_rate=100_000.0))
    async with talk(gate, registry.endpoint) as client:
        started = await client.ask("POST", "/v2/team/app/blobs/uploads/")
        target = started.headers["location"].partition("localhost:5000")[2]
        for _ in range(3):
            sent = await client.ask("PATCH", target, "Content-Type: application/octet-stream", body=b"z" * 60_000)
            target = sent.headers["location"].partition("localhost:5000")[2]

    (rate,) = gate.context.limiters.health()
    assert sent.status == HTTPStatus.ACCEPTED
    assert rate.waits > 0


async def test_the_last_bytes_of_a_body_count_too(talk: "Talk", registry: Registry) -> None:
    """A body that arrives in one piece after its head counts whole, and the next one waits for it."""
    gate = limited(GroupLimits(push_rate=100_000.0))
    async with talk(gate, registry.endpoint) as client:
        started = await client.ask("POST", "/v2/team/app/blobs/uploads/")
        target = started.headers["location"].partition("localhost:5000")[2]
        for _ in range(3):
            head = f"PATCH {target} HTTP/1.1\r\nHost: localhost:5000\r\nContent-Length: 60000\r\n\r\n"
            client.channel.send(head.encode())
            client.channel.send(b"z" * 60_000)
            target = (await client.answer("PATCH")).headers["location"].partition("localhost:5000")[2]

    (rate,) = gate.context.limiters.health()
    assert rate.waits > 0


async def test_a_wait_for_a_turn_is_no_stall_of_the_agent() -> None:
    """A response may wait for longer than an agent may take to read it; then the agent has its whole time."""
    limiter, deadline, channel = GroupLimiter("ci", GroupLimits(pull_rate=200.0)), Deadline(), MemoryChannel()
    paced = PacedChannel(channel, "agent", limiter, deadline)
    assert limiter.to_agents is not None
    await limiter.to_agents.acquire("another", 300.0)  # half a second more than there is

    with deadline.within(0.2):
        await paced.write(b"x")

    assert (bytes(channel.outgoing), limiter.to_agents.waits) == (b"x", 1)
    channel.stalled = True
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError), deadline.within(0.2):
            await paced.write(b"y")
    deadline.close()


async def test_a_direction_without_a_rate_is_not_limited(talk: "Talk", registry: Registry) -> None:
    """A limit of pushes leaves pulls as they are."""
    digest = registry.push_blob("team/app", b"y" * 200_000)
    gate = limited(GroupLimits(push_rate=1.0))
    async with talk(gate, registry.endpoint) as client:
        pulled = await client.ask("GET", f"/v2/team/app/blobs/{digest}")

    assert digest_of(pulled.body) == digest
    assert gate.context.limiters.health()[0].waits == 0


class EndsEarly:
    """A `ByteSource` that has ten bytes."""

    left = 10

    def notify_readable(self, reader: Callable[[], None] | None) -> None:
        """Do nothing: the bytes are there."""

    def receive_into(self, buffers: Sequence[memoryview]) -> int:
        """Give what is left."""
        count = min(self.left, len(buffers[0]))
        self.left -= count
        return count


async def test_a_source_that_ends_early_ends_the_sending() -> None:
    """A registry that closes the connection in the middle of a blob is noticed."""
    paced = PacedChannel(MemoryChannel(), "agent", GroupLimiter("ci", GroupLimits(pull_rate=1000.0)), Deadline())

    assert await paced.send_from(EndsEarly(), 5000, lambda _: None) == 10


async def test_a_paced_channel_ends_like_the_channel() -> None:
    """What is not paced goes straight to the channel."""
    channel = MemoryChannel()
    paced = PacedChannel(channel, "agent", GroupLimiter("ci", GroupLimits()), Deadline())

    paced.write_eof()
    paced.close()
    await paced.write(b"last")
    paced.abort()

    assert (channel.ended, channel.closed, channel.aborted) == (True, True, True)
    assert bytes(channel.outgoing) == b"last"
