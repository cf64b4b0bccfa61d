"""An upload belongs to the agent that began it, also after a restart of the controller."""

import asyncio
import json
import re
import string
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.gate_stand_ins import SECRET, gate_with
from tests.gate.docker_registry import digest_of, running_registry
from tests.gate.stateful_registry import stateful_registry
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.locations import UploadLocation
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.uploads import Upload, UploadProofs, new_id

if TYPE_CHECKING:
    from tests.gate.conftest import Reply, Scripted, Talk
    from tests.gate.docker_registry import Registry

ONE, OTHER = AgentId("static:one"), AgentId("static:other")
REGISTRY = Endpoint("127.0.0.1", 5001)
BEGIN = "/v2/work/app/blobs/uploads/"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY_INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
PROOFS = UploadProofs(SECRET)
UPLOAD = Upload(ONE, "1", REGISTRY, "work/app", "0" * 32)
STATE_CHARACTERS = string.ascii_letters + string.digits + "._-"
OWN_STATE = re.compile(r"[0-9a-f]{64}\.")
OWN_LOCATION = re.compile(
    r"http://localhost:5000/v2/work/app/blobs/uploads/(?P<id>[0-9a-f]{32})\?state=[0-9a-f]{64}\.[A-Za-z0-9_-]+"
)
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


def test_a_state_leads_to_the_registrys_location() -> None:
    """A state leads back to exactly the location that the registry gave, with its parameters unchanged."""
    place = UploadLocation("/v2/work/app/blobs/uploads/a~b=c:+", "_state=Ab%3D%3D&x=?y")

    assert PROOFS.location(UPLOAD, PROOFS.state(UPLOAD, place)) == place


async def test_the_longest_location_fits_into_a_request_line(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """The agent can continue an upload whose registry uses as long a location as the gate accepts."""
    place = f"/v2/work/app/blobs/uploads/{'u' * 256}?{'q' * 4096}"
    async with (
        scripted(answering("202 Accepted", place)) as registry,
        talk(gate, registry.endpoint) as agent,
    ):
        location = path_of(await agent.ask("POST", BEGIN))
        state = await agent.ask("GET", location)

    assert len(location) < 7000
    assert state.status == 202


def test_a_state_lasts_as_long_as_the_secret() -> None:
    """Another process with the same secret accepts a state; one with another secret does not."""
    state = PROOFS.state(UPLOAD, registry_location())

    assert UploadProofs(SECRET).location(UPLOAD, state) == registry_location()
    assert UploadProofs(b"another secret").location(UPLOAD, state) is None


def test_ids_of_uploads_are_random() -> None:
    """An upload's id cannot be guessed, and no two uploads have the same one."""
    ids = {new_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


_TEXTS = st.text(max_size=12)
_UPLOADS = st.builds(
    Upload,
    agent=_TEXTS.map(AgentId),
    incarnation=_TEXTS,
    registry=st.builds(Endpoint, st.sampled_from(["127.0.0.1", "::1"]), st.integers(1, 3)),
    repository=_TEXTS,
    id=_TEXTS,
)
_LOCATIONS = st.builds(
    registry_location, st.from_regex(r"[A-Za-z0-9._~=:+-]{1,40}", fullmatch=True), st.just("work/app")
)


@given(_UPLOADS, _UPLOADS, _LOCATIONS)
def test_no_state_is_accepted_for_another_upload(made: Upload, used: Upload, location: UploadLocation) -> None:
    """A state is accepted for no other agent, incarnation, registry, repository or upload than it was made for."""
    state = PROOFS.state(made, location)

    assert (PROOFS.location(used, state) is None) == (made != used)


@given(_LOCATIONS, st.sampled_from(["agent", "incarnation", "repository", "id"]), _TEXTS.filter(bool))
def test_each_part_is_bound_by_itself(location: UploadLocation, part: str, more: str) -> None:
    """A state is refused if one part of the upload is another, also if the parts together have the same text."""
    state = PROOFS.state(UPLOAD, location)
    changed = replace(UPLOAD, **{part: getattr(UPLOAD, part) + more})
    shifted = replace(UPLOAD, agent=AgentId(UPLOAD.agent + UPLOAD.incarnation), incarnation="")

    assert PROOFS.location(changed, state) is None
    assert PROOFS.location(shifted, state) is None


@given(_LOCATIONS, st.data())
def test_no_byte_of_a_state_can_be_changed(location: UploadLocation, data: st.DataObject) -> None:
    """A state in which one byte was changed, removed or added is refused."""
    state = PROOFS.state(UPLOAD, location)
    at = data.draw(st.integers(0, len(state) - 1))
    other = data.draw(st.sampled_from(STATE_CHARACTERS).filter(lambda one: one != state[at]))

    assert PROOFS.location(UPLOAD, state[:at] + other + state[at + 1 :]) is None
    assert PROOFS.location(UPLOAD, state[:at] + state[at + 1 :]) is None
    assert PROOFS.location(UPLOAD, state[: at + 1] + other + state[at + 1 :]) is None


@given(st.text(STATE_CHARACTERS))
def test_a_state_that_was_not_made_here_is_refused(state: str) -> None:
    """A text that the agent made up is refused in any form."""
    assert PROOFS.location(UPLOAD, state) is None


def test_the_secret_is_not_printed() -> None:
    """The text of the proofs, as a log or a traceback may have it, does not contain the secret."""
    assert "secret of every gate" not in repr(PROOFS)


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


async def test_after_a_restart_an_upload_goes_on(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """A gate with the same secret, as after a restart, continues an upload where it was."""
    async with talk(gate, registry.endpoint) as agent:
        sent = await agent.ask("PATCH", path_of(await agent.ask("POST", BEGIN)), body=b"abc")
    restarted = Gate(replace(gate.context, uploads=UploadProofs(SECRET)))

    async with talk(restarted, registry.endpoint) as agent:
        rest = await agent.ask("PATCH", path_of(sent), body=b"def")
        ended = await agent.ask("PUT", f"{path_of(rest)}&digest={digest_of(b'abcdef')}")

    assert (rest.status, ended.status) == (202, 201)


async def test_with_another_secret_an_upload_is_unknown(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """A controller with another state does not know an upload, and the agent can start it again."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
    other = Gate(replace(gate.context, uploads=UploadProofs(b"another secret")))

    async with talk(other, registry.endpoint) as agent:
        unknown = await agent.ask("PATCH", location)
        again = await agent.ask("POST", BEGIN)

    assert (unknown.status, unknown.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert unknown.message == "tunnelmgr: this agent has no such upload open: start the upload again"
    assert again.status == 202


async def test_another_machine_under_the_same_id_cannot_use_an_upload(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """A rebuilt machine, or a stranger under the same id, does not continue what the machine before it began."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
    async with talk(gate, registry.endpoint, incarnation="2") as stranger:
        refused = await stranger.ask("GET", location)

    assert (refused.status, refused.code) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_an_altered_or_missing_state_is_refused(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """A location without its state, or with the state of another upload, is that of no upload."""
    async with talk(gate, registry.endpoint) as agent:
        one, two = [path_of(await agent.ask("POST", BEGIN)).split("?") for _ in "12"]
        refused = [await agent.ask("GET", target) for target in (one[0], f"{one[0]}?{two[1]}", f"{one[0]}?state=open")]

    assert [(reply.status, reply.code) for reply in refused] == [(404, "BLOB_UPLOAD_UNKNOWN")] * 3


async def test_an_upload_can_be_cancelled(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """A DELETE of an upload's location, which is Docker's extension, ends the upload in the registry."""
    async with talk(gate, registry.endpoint) as agent:
        location = path_of(await agent.ask("POST", BEGIN))
        cancelled = await agent.ask("DELETE", location)
        gone = await agent.ask("GET", location)

    assert (cancelled.status, gone.status) == (204, 404)


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


async def test_every_location_of_an_upload_is_the_gates_own(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """Every response has a location of the gate's form, with one id; clients use the last one, as the spec says."""
    async with talk(gate, registry.endpoint) as agent:
        started = await agent.ask("POST", BEGIN)
        sent = await agent.ask("PATCH", path_of(started), body=b"abc")
        state = await agent.ask("GET", path_of(sent))
        ended = await agent.ask("PUT", f"{path_of(state)}&digest={digest_of(b'abc')}")

    forms = [OWN_LOCATION.fullmatch(reply.headers["location"]) for reply in (started, sent, state)]
    assert len({form and form["id"] for form in forms}) == 1
    assert (state.status, ended.status) == (204, 201)
    assert ended.headers["location"] == f"http://localhost:5000/v2/work/app/blobs/{digest_of(b'abc')}"


async def test_uploads_work_with_a_registry_that_has_its_state_in_the_location(talk: "Talk", gate: Gate) -> None:
    """Uploads in pieces and in one piece, their state and their cancellation work with a registry like olareg."""
    with stateful_registry() as server:
        async with talk(gate, Endpoint("127.0.0.1", server.server_port)) as agent:
            location = path_of(await agent.ask("POST", BEGIN))
            first = await agent.ask("PATCH", location, "Content-Range: 0-2", body=b"abc")
            wrong = await agent.ask("PATCH", path_of(first), "Content-Range: 0-2", body=b"abc")
            state = await agent.ask("GET", location)
            rest = await agent.ask("PATCH", path_of(state), "Content-Range: 3-5", body=b"def")
            ended = await agent.ask("PUT", f"{path_of(rest)}&digest={digest_of(b'abcdef')}")
            whole = path_of(await agent.ask("POST", BEGIN))
            at_once = await agent.ask("PUT", f"{whole}&digest={digest_of(b'x')}", body=b"x")
            cancelled = await agent.ask("DELETE", path_of(await agent.ask("POST", BEGIN)))
            blob = await agent.ask("GET", f"/v2/work/app/blobs/{digest_of(b'abcdef')}")

    assert [reply.status for reply in (first, wrong, state, rest, ended)] == [202, 416, 204, 202, 201]
    assert (state.headers["range"], at_once.status, cancelled.status) == ("0-2", 201, 204)
    assert blob.body == b"abcdef"
    assert not any(OWN_STATE.search(target) for target in server.targets), "our own parameter ends at the gate"


async def test_uploads_work_with_a_registry_that_writes_another_host(talk: "Talk", gate: Gate, tmp_path: Path) -> None:
    """With `http.host` set, the registry writes that host into every Location, and uploads work."""
    with running_registry(tmp_path, host="https://registry.example") as registry:
        direct = registry.ask("POST", BEGIN)[1]["location"]
        async with talk(gate, registry.endpoint) as agent:
            location = path_of(await agent.ask("POST", BEGIN))
            sent = await agent.ask("PATCH", location, body=b"abc")
            ended = await agent.ask("PUT", f"{path_of(sent)}&digest={digest_of(b'abc')}")
            manifest = await agent.ask("PUT", "/v2/work/app/manifests/v1", f"Content-Type: {INDEX}", body=EMPTY_INDEX)

    assert direct.startswith("https://registry.example/v2/")
    assert [reply.status for reply in (sent, ended, manifest)] == [202, 201, 201]
    assert path_of(ended) == f"/v2/work/app/blobs/{digest_of(b'abc')}"
    assert path_of(manifest) == f"/v2/work/app/manifests/{digest_of(EMPTY_INDEX)}"
