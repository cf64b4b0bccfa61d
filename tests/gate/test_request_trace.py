"""The stages of a traced request, and what the registry is told of its trace."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.cached_gate import CachedGate
from tests.gate.conftest import Records
from tunnelmgr.core.group_limits import GroupLimits
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.gate.request_trace import RequestTrace, Stage

if TYPE_CHECKING:
    from tests.gate.conftest import Script, Scripted, Talk
    from tests.gate.docker_registry import Registry

BLOB = "/v2/team/app/blobs/sha256:" + "a" * 64
DEFAULT = GroupPolicy.build("ci")


def recording(heads: list[bytes]) -> "Script":
    """Script a registry that answers each request with nothing, and keeps the heads."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    return script


def stages(records: Records) -> list[list[Stage]]:
    """Return the stages of each recorded request."""
    return [[stage for stage, _ in record.trace.stages] for record in records.all if record.trace is not None]


@pytest.fixture
def records() -> Records:
    """Make a request log that traces everything."""
    made = Records()
    made.traced = True
    return made


async def test_the_registry_gets_the_context_of_the_gates_trace(
    talk: "Talk", scripted: "Scripted", records: Records
) -> None:
    """Its spans are children of the stage that waits for it; the agent's own context is dropped."""
    heads: list[bytes] = []
    gate = gate_with(DEFAULT, requests=records)

    async with scripted(recording(heads)) as registry, talk(gate, registry.endpoint) as to:
        agents = f"traceparent: 00-{'1' * 32}-{'2' * 16}-01"
        assert (await to.ask("GET", BLOB, agents, "tracestate: a=b", "baggage: a=b")).status == 200

    (record,) = records.all
    assert record.trace is not None
    context = f"00-{record.trace.trace_id:032x}-{record.trace.registry_id:016x}-01"
    fields = heads[0].lower()
    assert fields.count(b"trace") == 1
    assert f"traceparent: {context}\r\n".encode() in fields
    assert b"baggage" not in fields
    assert stages(records) == [[Stage.READ, Stage.DECIDE, Stage.REGISTRY, Stage.RESPOND]]
    assert [at for _, at in record.trace.stages] == sorted(at for _, at in record.trace.stages)


async def test_a_request_that_is_not_traced_has_no_context(talk: "Talk", scripted: "Scripted") -> None:
    """The registry is told nothing, not even what the agent sends."""
    heads: list[bytes] = []

    async with scripted(recording(heads)) as registry, talk(gate_with(DEFAULT), registry.endpoint) as to:
        await to.ask("GET", BLOB, f"traceparent: 00-{'1' * 32}-{'2' * 16}-01")

    assert b"trace" not in heads[0].lower()


async def test_requests_that_are_sent_once_for_many_have_no_context(
    talk: "Talk", scripted: "Scripted", records: Records
) -> None:
    """A manifest's request is the same for all that share it, traced or not."""
    heads: list[bytes] = []
    gate = gate_with(DEFAULT, requests=records)

    async with scripted(recording(heads)) as registry, talk(gate, registry.endpoint) as to:
        await to.ask("GET", "/v2/team/app/manifests/v1")

    assert b"trace" not in heads[0].lower()
    assert stages(records) == [[Stage.READ, Stage.DECIDE, Stage.REGISTRY, Stage.RESPOND]]


async def test_a_push_has_the_context_and_its_stages(talk: "Talk", scripted: "Scripted", records: Records) -> None:
    """A push to the registry is one stage, with the body that the agent sends meanwhile."""
    heads: list[bytes] = []
    gate = gate_with(GroupPolicy.build("ci", push=("**",)), requests=records)

    async with scripted(recording(heads)) as registry, talk(gate, registry.endpoint) as to:
        await to.ask("POST", "/v2/team/app/blobs/uploads/")

    assert b"traceparent" in heads[0].lower()
    assert stages(records)[0][:3] == [Stage.READ, Stage.DECIDE, Stage.REGISTRY]


async def test_a_refusal_is_traced_too(talk: "Talk", scripted: "Scripted", records: Records) -> None:
    """A request that the policy refuses ends with the gate's reply."""
    gate = gate_with(GroupPolicy.build("ci", pull=()), requests=records)

    async with scripted(recording([])) as registry, talk(gate, registry.endpoint) as to:
        assert (await to.ask("GET", BLOB)).status == 403

    assert stages(records) == [[Stage.READ, Stage.DECIDE, Stage.RESPOND]]


async def test_a_wait_within_a_limit_is_a_stage(talk: "Talk", scripted: "Scripted", records: Records) -> None:
    """In a group with limits, the wait for the turn stands before the registry."""
    gate = gate_with(GroupPolicy.build("ci", limits=GroupLimits(requests_per_second=100)), requests=records)

    async with scripted(recording([])) as registry, talk(gate, registry.endpoint) as to:
        await to.ask("GET", BLOB)

    assert stages(records) == [[Stage.READ, Stage.DECIDE, Stage.LIMIT, Stage.REGISTRY, Stage.RESPOND]]


async def test_a_pull_from_the_cache_is_a_stage(
    talk: "Talk", registry: "Registry", records: Records, tmp_path: Path
) -> None:
    """A pull that the cache serves does not show a wait for the registry; one that it leaves to it does."""
    digest = registry.push_blob("team/app", b"content of a traced layer")
    target, cached = f"/v2/team/app/blobs/{digest}", CachedGate(tmp_path, requests=records)

    async with talk(cached.gate, registry.endpoint) as agent:
        await agent.ask("GET", target)
        await agent.ask("GET", target, "Range: bytes=0-1,3-4")

    from_cache, from_registry = stages(records)
    assert from_cache == [Stage.READ, Stage.DECIDE, Stage.CACHE, Stage.RESPOND]
    assert from_registry == [Stage.READ, Stage.DECIDE, Stage.CACHE, Stage.REGISTRY, Stage.RESPOND]


def test_identifiers_are_those_of_the_recommendation() -> None:
    """A context has the form of W3C Trace Context, and no two traces have the same identifiers."""
    one, other = RequestTrace(), RequestTrace()

    version, trace, span, flags = one.traceparent.split(b"-")

    assert (version, flags) == (b"00", b"01")
    assert (len(trace), len(span)) == (32, 16)
    assert int(trace, 16) == one.trace_id != other.trace_id
    assert int(span, 16) == one.registry_id != one.root_id
