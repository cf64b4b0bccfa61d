"""Forwards to a read-only replica: pushes and deletes go to another registry, or are refused with its name."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gate.conftest import Records
from tests.gate.docker_registry import MANIFEST_TYPE, Registry, digest_of, running_registry
from tunnelmgr.core.tunnel import Endpoint, Forward
from tunnelmgr.gate.gate import Gate

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, Talk

Grants = Callable[..., Gate]
UNREACHABLE = Endpoint("127.0.0.1", 1)
LAYER = b"a layer that is pushed"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Registry]:
    """Run the registry that takes pushes, with the image team/app:v1."""
    with running_registry(tmp_path) as registry:
        registry.push_image("team/app", "v1", b"layer")
        yield registry


@pytest.fixture
def replica(writer: Registry) -> Iterator[Registry]:
    """Run a read-only registry on the writer's storage."""
    with running_registry(writer.folder, read_only=True) as registry:
        yield registry


def forward_to(replica: Registry, push_target: Endpoint | None = None, writer: str = "") -> Forward:
    """Return a forward to a replica."""
    return Forward("registry", (), replica.endpoint, push_target=push_target, writer=writer)


async def push_blob(agent: "Conversation", content: bytes) -> list[int]:
    """Push a blob in three requests, as clients do, and return their statuses."""
    started = await agent.ask("POST", "/v2/team/app/blobs/uploads/")
    location = started.headers["location"].removeprefix("http://localhost:5000")
    sent = await agent.ask("PATCH", location, body=content)
    location = sent.headers["location"].removeprefix("http://localhost:5000")
    ended = await agent.ask("PUT", f"{location}&digest={digest_of(content)}")
    return [started.status, sent.status, ended.status]


async def test_pushes_go_to_the_push_target_and_pulls_to_the_replica(
    talk: "Talk", gate_for: Grants, writer: Registry, replica: Registry
) -> None:
    """One channel pushes a blob and a manifest to the writer, and reads both from the replica."""
    manifest = writer.manifest("team/app", b"layer")
    read_before = replica.ask("GET", "/v2/team/app/tags/list")[2]
    async with talk(gate_for(push=("**",)), forward_to(replica, writer.endpoint)) as agent:
        statuses = await push_blob(agent, LAYER)
        tagged = await agent.ask("PUT", "/v2/team/app/manifests/v2", f"Content-Type: {MANIFEST_TYPE}", body=manifest)
        listed = await agent.ask("GET", "/v2/team/app/tags/list")
        blob = await agent.ask("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}")

    assert (statuses, tagged.status) == ([202, 202, 201], 201)
    assert (read_before, listed.body) == (
        b'{"name":"team/app","tags":["v1"]}\n',
        b'{"name":"team/app","tags":["v1","v2"]}\n',
    )
    assert blob.body == LAYER


async def test_protected_tags_are_looked_up_where_they_are_written(
    talk: "Talk", gate_for: Grants, writer: Registry, tmp_path: Path
) -> None:
    """A protected tag that only the writer has is neither changed nor deleted, and its manifest stays too."""
    digest = writer.ask("HEAD", "/v2/team/app/manifests/v1")[1]["docker-content-digest"]
    other = writer.manifest("team/app", b"another layer")
    gate = gate_for(push=("**",), delete=("**",), immutable_tags=("v*",))
    (tmp_path / "empty").mkdir()
    with running_registry(tmp_path / "empty", read_only=True) as behind:
        async with talk(gate, forward_to(behind, writer.endpoint)) as agent:
            pushed = await agent.ask("PUT", "/v2/team/app/manifests/v1", f"Content-Type: {MANIFEST_TYPE}", body=other)
            deleted = await agent.ask("DELETE", f"/v2/team/app/manifests/{digest}")

    assert (pushed.status, deleted.status) == (403, 403)
    assert f"team/app:v1 points to {digest}" in pushed.message
    assert f"{digest} may not be deleted: team/app:v1 points to it" in deleted.message


async def test_deletes_go_to_the_push_target(
    talk: "Talk", gate_for: Grants, writer: Registry, replica: Registry
) -> None:
    """A delete reaches the writer, and the replica no longer has the manifest."""
    digest = writer.ask("HEAD", "/v2/team/app/manifests/v1")[1]["docker-content-digest"]
    async with talk(gate_for(delete=("**",)), forward_to(replica, writer.endpoint)) as agent:
        deleted = await agent.ask("DELETE", f"/v2/team/app/manifests/{digest}")
        gone = await agent.ask("GET", f"/v2/team/app/manifests/{digest}")

    assert (deleted.status, gone.status) == (202, 404)


async def test_a_push_target_that_is_away_costs_no_pull(talk: "Talk", gate_for: Grants, replica: Registry) -> None:
    """A push gets 503 with the address that does not answer, and pulls on the same channel are served."""
    async with talk(gate_for(push=("**",)), forward_to(replica, UNREACHABLE)) as agent:
        refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/")
        listed = await agent.ask("GET", "/v2/team/app/tags/list")

    assert (refused.status, refused.code, listed.status) == (503, "UNAVAILABLE", 200)
    assert refused.message.startswith("tunnelmgr: the registry at 127.0.0.1:1 cannot be reached")


async def test_a_replica_without_push_target_names_the_writer(talk: "Talk", gate_for: Grants, writer: Registry) -> None:
    """Pushes and deletes are refused with the writer's name, and do not reach a registry that would take them."""
    records = Records()
    gate = Gate(replace(gate_for(push=("**",), delete=("**",)).context, requests=records))
    before = writer.access_log()
    async with talk(gate, forward_to(writer, writer="registry-1, from an agent of group builders")) as agent:
        pushed = await agent.ask("POST", "/v2/team/app/blobs/uploads/")
        deleted = await agent.ask("DELETE", f"/v2/team/app/manifests/{digest_of(b'x')}")
        log = writer.access_log()
        read = await agent.ask("GET", "/v2/team/app/tags/list")

    assert [(reply.status, reply.code) for reply in (pushed, deleted)] == [(405, "UNSUPPORTED")] * 2
    assert (log, read.status) == (before, 200)
    assert pushed.message == (
        f"tunnelmgr: the registry at {writer.endpoint} does not allow POST here: it is a read-only replica; use "
        "registry-1, from an agent of group builders for that"
    )
    assert [record.error for record in records.all] == ["replica-read-only", "replica-read-only", ""]


async def test_who_may_not_push_gets_the_policys_refusal(talk: "Talk", gate_for: Grants, writer: Registry) -> None:
    """The group's rules decide first, so an agent without a grant does not learn where others push."""
    async with talk(gate_for(), forward_to(writer, writer="registry-1")) as agent:
        refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/")

    assert (refused.status, refused.code) == (403, "DENIED")
    assert "registry-1" not in refused.message
