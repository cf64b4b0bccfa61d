"""An upload belongs to the agent that began it, and the number of stored uploads is bounded."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.docker_registry import digest_of, running_registry
from tests.gate.stateful_registry import stateful_registry
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.locations import UploadLocation
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.uploads import MAX_UPLOADS, RETENTION, Uploads

if TYPE_CHECKING:
    from tests.gate.conftest import Reply, Scripted, Talk
    from tests.gate.docker_registry import Registry

ONE, OTHER = AgentId("static:one"), AgentId("static:other")
REGISTRY = Endpoint("127.0.0.1", 5001)
BEGIN = "/v2/work/app/blobs/uploads/"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY_INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
METHODS = ("GET", "HEAD", "PATCH", "PUT", "DELETE")


def registry_location(name: str = "u1", repository: str = "work/app") -> UploadLocation:
    """Return a location in the registry."""
    return UploadLocation(f"/v2/{repository}/blobs/uploads/{name}", f"_state={name}")


def path_of(reply: "Reply") -> str:
    """Return the path of a response's Location."""
    return reply.headers["location"].removeprefix("http://localhost:5000")


@pytest.fixture
def gate() -> Gate:
    """Return a gate whose group may push."""
    policy = GroupPolicy.build("ci", push=("work/**",), immutable_tags=("release-*",))
    return gate_with(policy)


class Clock:
    """A clock that moves only when the test sets it."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_an_upload_is_found_only_by_the_agent_that_began_it() -> None:
    """An upload is found only by its agent, its repository and its registry."""
    uploads = Uploads()

    upload = uploads.begin(ONE, REGISTRY, "work/app", registry_location())

    assert uploads.find(ONE, upload) == registry_location()
    assert uploads.find(OTHER, upload) is None
    assert uploads.find(ONE, replace(upload, id="0" * 32)) is None
    assert uploads.find(ONE, replace(upload, repository="work/other")) is None
    assert uploads.find(ONE, replace(upload, registry=Endpoint("127.0.0.1", 5002))) is None


def test_ids_of_uploads_are_random() -> None:
    """An upload's id contains nothing of the registry's location, and two uploads with one location have two ids."""
    uploads = Uploads()

    ids = {uploads.begin(ONE, REGISTRY, "work/app", registry_location()).id for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_an_upload_continues_at_the_registrys_last_location() -> None:
    """The registry may move an upload with each response; the agent's location stays."""
    uploads = Uploads()
    upload = uploads.begin(ONE, REGISTRY, "work/app", registry_location())

    uploads.move(ONE, upload, registry_location("u2"))

    assert uploads.find(ONE, upload) == registry_location("u2")
    assert len(uploads) == 1


def test_an_upload_that_ended_is_forgotten() -> None:
    """An upload that has ended is not found any more, and forgetting it twice does no harm."""
    uploads = Uploads()
    ended, other = (uploads.begin(ONE, REGISTRY, "work/app", registry_location()) for _ in "12")

    for _ in "12":
        uploads.forget(ONE, ended)
    uploads.forget(OTHER, ended)

    assert uploads.find(ONE, ended) is None
    assert uploads.find(ONE, other) == registry_location()


def test_the_uploads_of_an_agent_are_bounded() -> None:
    """An agent's newest upload replaces its own least recently used one, and none of another agent."""
    uploads = Uploads()
    others = uploads.begin(OTHER, REGISTRY, "work/app", registry_location())
    own = [uploads.begin(ONE, REGISTRY, "work/app", registry_location(str(number))) for number in range(MAX_UPLOADS)]
    uploads.move(ONE, own[0], registry_location())

    new = uploads.begin(ONE, REGISTRY, "work/app", registry_location("new"))

    assert uploads.find(ONE, own[0]) is not None
    assert uploads.find(ONE, own[1]) is None
    assert uploads.find(ONE, new) is not None
    assert uploads.find(OTHER, others) is not None
    assert len(uploads) == MAX_UPLOADS + 1


def test_an_upload_is_kept_for_a_day_after_its_last_use() -> None:
    """An upload is stored for a day after its last use."""
    clock = Clock()
    uploads = Uploads(clock)
    upload = uploads.begin(ONE, REGISTRY, "work/app", registry_location())
    clock.now = RETENTION
    uploads.move(ONE, upload, registry_location())

    clock.now = 2 * RETENTION
    used = uploads.find(ONE, upload)
    clock.now += 1

    assert used is not None
    assert uploads.find(ONE, upload) is None


def test_agents_that_left_do_not_stay_in_memory() -> None:
    """Expired uploads of any agent are dropped when another agent pushes; others stay."""
    clock = Clock()
    uploads = Uploads(clock)
    uploads.begin(ONE, REGISTRY, "work/app", registry_location())
    clock.now = RETENTION / 2
    young = uploads.begin(ONE, REGISTRY, "work/app", registry_location())
    clock.now = RETENTION + 1

    uploads.begin(OTHER, REGISTRY, "work/app", registry_location())

    assert len(uploads) == 2
    assert uploads.find(ONE, young) is not None


async def test_an_upload_continues_on_another_channel_of_its_agent(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """After a reconnect, an agent resumes an upload that was cut off (OCI distribution spec, end-13)."""
    async with talk(gate, registry.endpoint) as agent:
        started = await agent.ask("POST", BEGIN)
        sent = await agent.ask("PATCH", path_of(started), "Content-Range: 0-2", body=b"abc")
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
    """Another agent that may push to the repository cannot use an upload's location, and does not disturb its owner."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
    async with talk(gate, registry.endpoint, agent_id=OTHER) as other:
        refused = await other.ask(method, location, body=b"x" if method in {"PATCH", "PUT"} else b"")
        other.channel.end()
    async with talk(gate, registry.endpoint) as agent:
        state = await agent.ask("GET", location)

    assert refused.status == 404
    assert method == "HEAD" or refused.code == "BLOB_UPLOAD_UNKNOWN"
    assert (state.status, state.headers["range"]) == (204, "0-0")


async def test_after_a_restart_an_upload_is_unknown(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """After a restart, an upload is unknown to the gate, and the agent can start it again."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
    restarted = Gate(replace(gate.context, uploads=Uploads()))

    async with talk(restarted, registry.endpoint) as agent:
        unknown = await agent.ask("PATCH", location)
        again = await agent.ask("POST", BEGIN)

    assert (unknown.status, unknown.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert unknown.message == "tunnelmgr: this agent has no such upload open: start the upload again"
    assert again.status == 202


async def test_a_cancelled_upload_is_forgotten(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """A DELETE of an upload's location, which is Docker's extension, ends the upload."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
        cancelled = await agent.ask("DELETE", location)

    assert cancelled.status == 204
    assert len(gate.context.uploads) == 0


def answering(status: str, location: str) -> Callable[..., Awaitable[None]]:
    """Script a registry that sends the same response to every request."""

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
async def test_a_location_outside_of_the_repositorys_uploads_is_an_error(
    talk: "Talk", gate: Gate, scripted: "Scripted", location: str
) -> None:
    """If the registry continues an upload outside of the repository's uploads, the agent gets 502 and the reason."""
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


async def test_a_response_without_a_location_is_forwarded(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """A response to an upload without a Location is forwarded unchanged."""
    async with scripted(answering("202 Accepted", "")) as registry, talk(gate, registry.endpoint) as agent:
        started = await agent.ask("POST", BEGIN)

    assert started.status == 202
    assert "location" not in started.headers


async def test_an_upload_may_be_redirected_within_the_registry(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """A redirect of an upload within the registry is forwarded, and the next request is decided again."""
    async with (
        scripted(answering("307 Temporary Redirect", "/v2/work/other/blobs/uploads/")) as registry,
        talk(gate, registry.endpoint) as agent,
    ):
        moved = await agent.ask("POST", BEGIN)

    assert (moved.status, moved.headers["location"]) == (307, "/v2/work/other/blobs/uploads/")


async def test_the_location_of_an_error_need_not_be_an_upload(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """A Location in an error response need not be an upload, and stores none."""
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
    """Every response has the gate's own location, which works with and without its query."""
    async with talk(gate, registry.endpoint) as agent:
        started = await agent.ask("POST", BEGIN)
        sent = await agent.ask("PATCH", path_of(started), body=b"abc")
        state = await agent.ask("GET", path_of(started).partition("?")[0])
        ended = await agent.ask("PUT", f"{path_of(started)}&digest={digest_of(b'abc')}")

    locations = {reply.headers["location"] for reply in (started, sent, state)}
    assert len(locations) == 1
    assert re.fullmatch(r"http://localhost:5000/v2/work/app/blobs/uploads/[0-9a-f]{32}\?state=open", locations.pop())
    assert (state.status, ended.status) == (204, 201)
    assert ended.headers["location"] == f"http://localhost:5000/v2/work/app/blobs/{digest_of(b'abc')}"


async def test_uploads_work_with_a_registry_that_has_its_state_in_the_location(talk: "Talk", gate: Gate) -> None:
    """Uploads in pieces and in one piece, their state and their cancellation work with a registry like olareg."""
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


async def test_uploads_work_with_a_registry_that_writes_another_host(talk: "Talk", gate: Gate, tmp_path: Path) -> None:
    """With `http.host` set, the registry writes that host into every Location, and uploads work."""
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
