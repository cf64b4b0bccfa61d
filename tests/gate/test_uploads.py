"""Uploads belong to the agent that began them, and the memory of them is bounded."""

import asyncio
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.session import Gate
from tunnelmgr.gate.uploads import KEPT, PER_AGENT, Upload, Uploads

if TYPE_CHECKING:
    from tests.gate.conftest import Registry, Reply, Scripted, Talk

ONE, OTHER = AgentId("static:one"), AgentId("static:other")
REGISTRY = Endpoint("127.0.0.1", 5001)
BEGIN = "/v2/work/app/blobs/uploads/"
METHODS = ("GET", "HEAD", "PATCH", "PUT", "DELETE")


def upload(name: str = "u1", repository: str = "work/app") -> Upload:
    """Return an upload of the registry."""
    return Upload(REGISTRY, repository, name)


def path_of(reply: "Reply") -> str:
    """Return where an answer's Location leads."""
    return reply.headers["location"].removeprefix("http://localhost:5000")


@pytest.fixture
def gate() -> Gate:
    """Make a gate whose agents may push."""
    policy = GroupPolicy.build("ci", push=("work/**",), immutable_tags=("release-*",))
    return Gate(policy=lambda _: policy, proof=lambda nonce, _: nonce)


class Clock:
    """A clock that stands until it is told."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_an_upload_belongs_to_who_began_it() -> None:
    """To nobody else, and only that one."""
    uploads = Uploads()

    uploads.keep(ONE, upload())

    assert uploads.belongs(upload(), ONE)
    assert not uploads.belongs(upload(), OTHER)
    assert not uploads.belongs(upload("u2"), ONE)
    assert not uploads.belongs(upload(repository="work/other"), ONE)


def test_an_upload_that_ended_is_forgotten() -> None:
    """Its id is nobody's then, and forgetting it twice does no harm."""
    uploads = Uploads()
    uploads.keep(ONE, upload())
    uploads.keep(ONE, upload("u2"))

    for _ in "12":
        uploads.forget(ONE, upload())
    uploads.forget(OTHER, upload())

    assert not uploads.belongs(upload(), ONE)
    assert uploads.belongs(upload("u2"), ONE)


def test_the_uploads_of_an_agent_are_bounded() -> None:
    """The one unused for longest makes room, and nobody else's does."""
    uploads = Uploads()
    uploads.keep(OTHER, upload("other"))
    for number in range(PER_AGENT):
        uploads.keep(ONE, upload(str(number)))
    uploads.keep(ONE, upload("0"))

    uploads.keep(ONE, upload("new"))

    assert uploads.belongs(upload("0"), ONE)
    assert not uploads.belongs(upload("1"), ONE)
    assert uploads.belongs(upload("new"), ONE)
    assert uploads.belongs(upload("other"), OTHER)
    assert len(uploads) == PER_AGENT + 1


def test_an_upload_is_kept_for_a_day_after_its_last_use() -> None:
    """Going on with it counts as use."""
    clock = Clock()
    uploads = Uploads(clock)
    uploads.keep(ONE, upload())
    clock.now = KEPT
    uploads.keep(ONE, upload())

    clock.now = 2 * KEPT
    used = uploads.belongs(upload(), ONE)
    clock.now += 1

    assert used
    assert not uploads.belongs(upload(), ONE)


def test_agents_that_left_do_not_stay_in_memory() -> None:
    """What grew old goes when another agent pushes; what is young stays."""
    clock = Clock()
    uploads = Uploads(clock)
    uploads.keep(ONE, upload())
    clock.now = KEPT / 2
    uploads.keep(ONE, upload("young"))
    clock.now = KEPT + 1

    uploads.keep(OTHER, upload("other"))

    assert len(uploads) == 2
    assert uploads.belongs(upload("young"), ONE)


async def test_an_upload_goes_on_over_another_channel_of_its_agent(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """A tunnel that came back resumes what was cut off (OCI distribution spec, end-13)."""
    async with talk(gate, registry.endpoint) as agent:
        begun = await agent.ask("POST", BEGIN)
        sent = await agent.ask("PATCH", path_of(begun), "Content-Range: 0-2", body=b"abc")
    async with talk(gate, registry.endpoint) as agent:
        state = await agent.ask("GET", path_of(sent))
        rest = await agent.ask("PATCH", path_of(state), "Content-Range: 3-5", body=b"def")
        digest = "sha256:bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721"
        ended = await agent.ask("PUT", f"{path_of(rest)}&digest={digest}")
        again = await agent.ask("GET", path_of(state))

    assert (state.status, state.headers["range"]) == (204, "0-2")
    assert ended.status == 201
    assert (again.status, again.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert len(gate.uploads) == 0


@pytest.mark.parametrize("method", METHODS)
async def test_another_agent_cannot_use_an_upload(talk: "Talk", gate: Gate, registry: "Registry", method: str) -> None:
    """Though it may push to the same repository and knows the whole location; the owner goes on undisturbed."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
    async with talk(gate, registry.endpoint, agent_id=OTHER) as stranger:
        refused = await stranger.ask(method, location, body=b"x" if method in {"PATCH", "PUT"} else b"")
        stranger.channel.end()
    async with talk(gate, registry.endpoint) as agent:
        state = await agent.ask("GET", location)

    assert refused.status == 404
    assert method == "HEAD" or refused.code == "BLOB_UPLOAD_UNKNOWN"
    assert (state.status, state.headers["range"]) == (204, "0-0")


async def test_after_a_restart_an_upload_is_begun_anew(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """What the controller does not know was begun by nobody."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
    restarted = Gate(policy=gate.policy, proof=gate.proof)

    async with talk(restarted, registry.endpoint) as agent:
        unknown = await agent.ask("PATCH", location)
        anew = await agent.ask("POST", BEGIN)

    assert (unknown.status, unknown.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert unknown.message == "tunnelmgr: this agent has no such upload open: begin it again"
    assert anew.status == 202


async def test_a_cancelled_upload_is_forgotten(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """Docker's extension: DELETE on the location."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
        cancelled = await agent.ask("DELETE", location)

    assert cancelled.status == 204
    assert len(gate.uploads) == 0


@pytest.mark.parametrize(
    ("location", "warned"),
    [
        ("/v2/other/app/blobs/uploads/1", False),
        ("/v2/work/app/blobs/sha256:" + "a" * 64, False),
        ("/upload/1?token=x;y", True),
        ("", False),
    ],
)
async def test_a_location_that_is_no_upload_of_the_repository_is_nobodys(
    talk: "Talk", gate: Gate, scripted: "Scripted", location: str, *, warned: bool
) -> None:
    """Only what the request was judged by is opened."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        line = f"Location: {location}\r\n" if location else ""
        writer.write(f"HTTP/1.1 202 Accepted\r\n{line}Content-Length: 0\r\n\r\n".encode())
        await reader.read()

    with capture_logs() as lines:
        async with scripted(script) as registry, talk(gate, registry.endpoint) as agent:
            begun = await agent.ask("POST", BEGIN)

    assert begun.status == 202
    assert len(gate.uploads) == 0
    assert any(line["event"] == "upload location not understood" for line in lines) is warned
