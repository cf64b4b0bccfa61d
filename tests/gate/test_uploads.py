"""Uploads belong to the agent that began them, and the memory of them is bounded."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.conftest import digest_of, running_registry
from tests.gate.stateful_registry import stateful_registry
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.locations import UploadLocation
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.uploads import MAX_UPLOADS, RETENTION, Uploads

if TYPE_CHECKING:
    from tests.gate.conftest import Registry, Reply, Scripted, Talk

ONE, OTHER = AgentId("static:one"), AgentId("static:other")
REGISTRY = Endpoint("127.0.0.1", 5001)
BEGIN = "/v2/work/app/blobs/uploads/"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY_INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
METHODS = ("GET", "HEAD", "PATCH", "PUT", "DELETE")


def place(name: str = "u1", repository: str = "work/app") -> UploadLocation:
    """Return a place in the registry."""
    return UploadLocation(f"/v2/{repository}/blobs/uploads/{name}", f"_state={name}")


def path_of(reply: "Reply") -> str:
    """Return where an answer's Location leads."""
    return reply.headers["location"].removeprefix("http://localhost:5000")


@pytest.fixture
def gate() -> Gate:
    """Make a gate whose agents may push."""
    policy = GroupPolicy.build("ci", push=("work/**",), immutable_tags=("release-*",))
    return gate_with(policy)


class Clock:
    """A clock that stands until it is told."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_an_upload_belongs_to_who_began_it() -> None:
    """To no other agent, and not as an upload to another repository or registry."""
    uploads = Uploads()

    begun = uploads.begin(ONE, REGISTRY, "work/app", place())

    assert uploads.find(ONE, begun) == place()
    assert uploads.find(OTHER, begun) is None
    assert uploads.find(ONE, replace(begun, id="0" * 32)) is None
    assert uploads.find(ONE, replace(begun, repository="work/other")) is None
    assert uploads.find(ONE, replace(begun, registry=Endpoint("127.0.0.1", 5002))) is None


def test_ids_are_ours_and_cannot_be_guessed() -> None:
    """They hold nothing of the registry's place, and the same place twice has two."""
    uploads = Uploads()

    ids = {uploads.begin(ONE, REGISTRY, "work/app", place()).id for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_an_upload_goes_on_where_the_registry_last_said() -> None:
    """Each answer may give another place; the agent's location stays."""
    uploads = Uploads()
    begun = uploads.begin(ONE, REGISTRY, "work/app", place())

    uploads.move(ONE, begun, place("u2"))

    assert uploads.find(ONE, begun) == place("u2")
    assert len(uploads) == 1


def test_an_upload_that_ended_is_forgotten() -> None:
    """Its id is nobody's then, and forgetting it twice does no harm."""
    uploads = Uploads()
    ended, other = (uploads.begin(ONE, REGISTRY, "work/app", place()) for _ in "12")

    for _ in "12":
        uploads.forget(ONE, ended)
    uploads.forget(OTHER, ended)

    assert uploads.find(ONE, ended) is None
    assert uploads.find(ONE, other) == place()


def test_the_uploads_of_an_agent_are_bounded() -> None:
    """The one unused for longest makes room, and nobody else's does."""
    uploads = Uploads()
    others = uploads.begin(OTHER, REGISTRY, "work/app", place())
    own = [uploads.begin(ONE, REGISTRY, "work/app", place(str(number))) for number in range(MAX_UPLOADS)]
    uploads.move(ONE, own[0], place())

    new = uploads.begin(ONE, REGISTRY, "work/app", place("new"))

    assert uploads.find(ONE, own[0]) is not None
    assert uploads.find(ONE, own[1]) is None
    assert uploads.find(ONE, new) is not None
    assert uploads.find(OTHER, others) is not None
    assert len(uploads) == MAX_UPLOADS + 1


def test_an_upload_is_kept_for_a_day_after_its_last_use() -> None:
    """Going on with it counts as use."""
    clock = Clock()
    uploads = Uploads(clock)
    begun = uploads.begin(ONE, REGISTRY, "work/app", place())
    clock.now = RETENTION
    uploads.move(ONE, begun, place())

    clock.now = 2 * RETENTION
    used = uploads.find(ONE, begun)
    clock.now += 1

    assert used is not None
    assert uploads.find(ONE, begun) is None


def test_agents_that_left_do_not_stay_in_memory() -> None:
    """What grew old goes when another agent pushes; what is young stays."""
    clock = Clock()
    uploads = Uploads(clock)
    uploads.begin(ONE, REGISTRY, "work/app", place())
    clock.now = RETENTION / 2
    young = uploads.begin(ONE, REGISTRY, "work/app", place())
    clock.now = RETENTION + 1

    uploads.begin(OTHER, REGISTRY, "work/app", place())

    assert len(uploads) == 2
    assert uploads.find(ONE, young) is not None


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
    assert len(gate.context.uploads) == 0


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
    restarted = Gate(replace(gate.context, uploads=Uploads()))

    async with talk(restarted, registry.endpoint) as agent:
        unknown = await agent.ask("PATCH", location)
        anew = await agent.ask("POST", BEGIN)

    assert (unknown.status, unknown.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert unknown.message == "tunnelmgr: this agent has no such upload open: start the upload again"
    assert anew.status == 202


async def test_a_cancelled_upload_is_forgotten(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """Docker's extension: DELETE on the location."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
        cancelled = await agent.ask("DELETE", location)

    assert cancelled.status == 204
    assert len(gate.context.uploads) == 0


def answering(status: str, location: str) -> Callable[..., Awaitable[None]]:
    """Script a registry that gives every request the same answer."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            line = f"Location: {location}\r\n" if location else ""
            writer.write(f"HTTP/1.1 {status}\r\n{line}Content-Length: 0\r\n\r\n".encode())

    return script


@pytest.mark.parametrize(
    "location",
    [
        "/v2/other/app/blobs/uploads/1",
        "/v2/work/app/blobs/sha256:" + "a" * 64,
        "/upload/1?token=x",
        "/v2/work/app/blobs/uploads/1?digest=sha256:" + "a" * 64,
        "https://registry.example/foo/v2/work/app/blobs/uploads/1",
        "/\\evil.example",
    ],
)
async def test_a_location_that_is_no_upload_of_the_repository_is_an_error(
    talk: "Talk", gate: Gate, scripted: "Scripted", location: str
) -> None:
    """Only what the request was judged by is opened, and the agent is told the reason and the cure."""
    async with (
        scripted(answering("202 Accepted", location)) as registry,
        talk(gate, registry.endpoint) as agent,
    ):
        failed = await agent.ask("POST", BEGIN)

    assert (failed.status, failed.code) == (502, "UNAVAILABLE")
    assert (
        f"answered 202 with the location {location!r}, which is not a valid location in repository work/app"
        in failed.message
    )
    assert "correct http.host and http.prefix in its config" in failed.message
    assert len(gate.context.uploads) == 0


async def test_an_answer_without_a_location_is_passed_on(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """There is nothing to follow."""
    async with scripted(answering("202 Accepted", "")) as registry, talk(gate, registry.endpoint) as agent:
        begun = await agent.ask("POST", BEGIN)

    assert begun.status == 202
    assert "location" not in begun.headers


async def test_an_upload_may_be_redirected_within_the_registry(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """The client asks again there, and is judged again."""
    async with (
        scripted(answering("307 Temporary Redirect", "/v2/work/other/blobs/uploads/")) as registry,
        talk(gate, registry.endpoint) as agent,
    ):
        moved = await agent.ask("POST", BEGIN)

    assert (moved.status, moved.headers["location"]) == (307, "/v2/work/other/blobs/uploads/")


async def test_a_location_beside_an_error_need_not_be_an_upload(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """It is told like any other, and opens nothing."""
    async with (
        scripted(answering("416 Range Not Satisfiable", "/v2/work/app/tags/list")) as registry,
        talk(gate, registry.endpoint) as agent,
    ):
        refused = await agent.ask("POST", BEGIN)

    assert (refused.status, refused.headers["location"]) == (416, "/v2/work/app/tags/list")
    assert len(gate.context.uploads) == 0


async def test_the_agent_sees_nothing_of_the_registrys_own_location(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """The location is the gate's, the same from the first answer to the last, and works with or without its query."""
    async with talk(gate, registry.endpoint) as agent:
        begun = await agent.ask("POST", BEGIN)
        sent = await agent.ask("PATCH", path_of(begun), body=b"abc")
        state = await agent.ask("GET", path_of(begun).partition("?")[0])
        ended = await agent.ask("PUT", f"{path_of(begun)}&digest={digest_of(b'abc')}")

    locations = {reply.headers["location"] for reply in (begun, sent, state)}
    assert len(locations) == 1
    assert re.fullmatch(r"http://localhost:5000/v2/work/app/blobs/uploads/[0-9a-f]{32}\?state=open", locations.pop())
    assert (state.status, ended.status) == (204, 201)
    assert ended.headers["location"] == f"http://localhost:5000/v2/work/app/blobs/{digest_of(b'abc')}"


async def test_uploads_work_with_a_registry_that_keeps_its_state_otherwise(talk: "Talk", gate: Gate) -> None:
    """In pieces, asked for its state, ended, in one piece, and cancelled; and content comes back."""
    with stateful_registry() as server:
        async with talk(gate, Endpoint("127.0.0.1", server.server_port)) as agent:
            location = path_of(await agent.ask("POST", BEGIN))
            first = await agent.ask("PATCH", location, "Content-Range: 0-2", body=b"abc")
            wrong = await agent.ask("PATCH", location, "Content-Range: 0-2", body=b"abc")
            state = await agent.ask("GET", location)
            rest = await agent.ask("PATCH", location, "Content-Range: 3-5", body=b"def")
            ended = await agent.ask("PUT", f"{location}&digest={digest_of(b'abcdef')}")
            whole = path_of(await agent.ask("POST", BEGIN))
            at_once = await agent.ask("PUT", f"{whole}&digest={digest_of(b'x')}", body=b"x")
            cancelled = await agent.ask("DELETE", path_of(await agent.ask("POST", BEGIN)))
            blob = await agent.ask("GET", f"/v2/work/app/blobs/{digest_of(b'abcdef')}")

    assert [reply.status for reply in (first, wrong, state, rest, ended)] == [202, 416, 204, 202, 201]
    assert (state.headers["range"], at_once.status, cancelled.status) == ("0-2", 201, 204)
    assert blob.body == b"abcdef"
    assert len(gate.context.uploads) == 0
    assert not any("open" in target for target in server.targets), "our own parameter ends at the gate"


async def test_uploads_work_although_the_registry_names_another_host(talk: "Talk", gate: Gate, tmp_path: Path) -> None:
    """With `http.host` set it names that host in every Location; the path is followed on the same registry."""
    with running_registry(tmp_path, host="https://registry.example") as registry:
        direct = registry.ask("POST", BEGIN)[1]["location"]
        async with talk(gate, registry.endpoint) as agent:
            location = path_of(await agent.ask("POST", BEGIN))
            sent = await agent.ask("PATCH", location, body=b"abc")
            ended = await agent.ask("PUT", f"{location}&digest={digest_of(b'abc')}")
            manifest = await agent.ask("PUT", "/v2/work/app/manifests/v1", f"Content-Type: {INDEX}", body=EMPTY_INDEX)

    assert direct.startswith("https://registry.example/v2/")
    assert [reply.status for reply in (sent, ended, manifest)] == [202, 201, 201]
    assert path_of(ended) == f"/v2/work/app/blobs/{digest_of(b'abc')}"
    assert path_of(manifest) == f"/v2/work/app/manifests/{digest_of(EMPTY_INDEX)}"
