"""A protected tag and its manifest cannot be deleted, and the search for protected tags is bounded."""

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.docker_registry import digest_of
from tests.gate.tags_registry import DIGEST, HEX, OTHER, Tags, delete, pointing_to, push
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.timeouts import Timeouts

if TYPE_CHECKING:
    from tests.gate.conftest import Scripted, Talk
    from tests.gate.docker_registry import Registry

Grants = Callable[..., Gate]


@pytest.fixture
def gate() -> Gate:
    """Return a gate whose group may push and delete, but not change releases."""
    policy = GroupPolicy.build("ci", push=("work/**",), delete=("work/**",), immutable_tags=("release-*",))
    return gate_with(policy)


async def test_a_protected_tag_and_its_manifest_cannot_be_deleted(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """Neither a protected tag nor its digest can be deleted, so the tag cannot be pushed with another manifest."""
    first, second = (registry.manifest("work/kept", layer) for layer in (b"first", b"second"))

    async with talk(gate, registry.endpoint) as agent:
        await push(agent, "work/kept", "release-1", first)
        await push(agent, "work/kept", "latest", first)
        by_tag = await delete(agent, "work/kept", "release-1")
        by_digest = await delete(agent, "work/kept", digest_of(first))
        as_blob = await delete(agent, "work/kept", digest_of(first), "blobs")
        again = await push(agent, "work/kept", "release-1", second)

    assert [answer.status for answer in (by_tag, by_digest, as_blob, again)] == [403] * 4
    assert by_tag.message == "tunnelmgr: work/kept:release-1 may not be deleted (immutable_tags release-*)"
    assert by_digest.message == (
        f"tunnelmgr: {digest_of(first)} may not be deleted: work/kept:release-1 points to it (immutable_tags release-*)"
    )
    assert registry.ask("GET", "/v2/work/kept/manifests/release-1")[2] == first


async def test_what_no_protected_tag_points_to_is_deleted(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """Manifests of other tags, blobs, and manifests in a repository without tags can be deleted."""
    kept, gone = (registry.manifest("work/tidy", layer) for layer in (b"kept", b"gone"))
    blob = registry.push_blob("work/untagged", b"left over")

    async with talk(gate, registry.endpoint) as agent:
        await push(agent, "work/tidy", "release-1", kept)
        await push(agent, "work/tidy", "latest", gone)
        deleted = await delete(agent, "work/tidy", digest_of(gone))
        of_no_tags = await delete(agent, "work/untagged", blob, "blobs")
        by_tag = await delete(agent, "work/tidy", "latest")

    assert (deleted.status, of_no_tags.status) == (202, 202)
    assert by_tag.status == 400, "docker-registry 2.8 deletes no tags, which is its own answer"


async def test_a_group_without_protected_tags_deletes_without_a_search(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """For a group without protected tags, the registry gets the delete and no other request."""
    digest = registry.push_image("work/plain", "release-1", b"plain")
    before = len(registry.access_log())

    async with talk(gate_for(delete=("work/**",)), registry.endpoint) as agent:
        deleted = await delete(agent, "work/plain", digest)

    assert deleted.status == 202
    assert registry.access_log()[before:].count("/v2/work/plain/") == 1


async def test_every_page_of_tags_is_read_before_a_delete(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """A delete is refused if only the last page of tags has the protected tag that points to the manifest."""
    pages = [json.dumps({"tags": tags}).encode() for tags in (["a", "b"], ["c", 5, "/"], ["release-1"])]
    tags = Tags([*pages], head_response=pointing_to(DIGEST))

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        refused = await delete(agent, "work/app", DIGEST)

    assert refused.status == 403
    assert tags.requests == [
        "GET /v2/work/app/tags/list",
        "GET /v2/work/app/tags/list?last=b",
        "GET /v2/work/app/tags/list?last=c",
        "HEAD /v2/work/app/manifests/release-1",
    ]


async def test_a_listed_tag_without_a_manifest_protects_nothing(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """A tag that is listed but no longer has a manifest does not prevent a delete."""
    tags = Tags()

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        deleted = await delete(agent, "work/app", DIGEST)

    assert (deleted.status, tags.requests[-1]) == (202, f"DELETE /v2/work/app/manifests/{DIGEST}")


@pytest.mark.parametrize(
    ("head_response", "message"),
    [
        (pointing_to(""), "the registry reports no sha256 digest of work/app:release-1"),
        (pointing_to(f"sha512:{HEX}{HEX}"), "the registry reports no sha256 digest of work/app:release-1"),
    ],
)
async def test_a_delete_is_refused_if_a_tags_digest_is_unknown(
    talk: "Talk", gate: Gate, scripted: "Scripted", head_response: bytes, message: str
) -> None:
    """A delete is refused if the registry reports no comparable digest for a protected tag."""
    tags = Tags(head_response=head_response)

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        refused = await delete(agent, "work/app", DIGEST)

    assert (refused.status, refused.code) == (403, "DENIED")
    assert message in refused.message
    assert "delete it on the registry itself" in refused.message


async def test_a_delete_is_refused_if_there_are_too_many_protected_tags(
    talk: "Talk", gate: Gate, scripted: "Scripted", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete is refused if the repository has more than `MAX_PROTECTED_TAGS` protected tags."""
    monkeypatch.setattr("tunnelmgr.gate.delete.MAX_PROTECTED_TAGS", 2)
    tags = Tags([b'{"tags": ["release-1", "release-2", "release-3"]}'])

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        refused = await delete(agent, "work/app", DIGEST)

    assert refused.status == 403
    assert "work/app has more than 2 protected tags" in refused.message
    assert sum(line.startswith("HEAD") for line in tags.requests) == 2


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (Tags([b"no json"], 200), "list of tags is not a JSON object"),
        (Tags([b'{"tags": 5}'], 200), "list of tags is not a JSON object"),
        (Tags([b"[]"], 200), "list of tags is not a JSON object"),
        (Tags([b"{}"], 500), "answered 500 when asked for its tags"),
        (Tags([b'{"tags": null}', b""], 200), "longer than 100 pages, or has an empty page"),
        (Tags([b'{"tags": ["a"]}'] * 102, 200), "longer than 100 pages, or has an empty page"),
    ],
)
async def test_a_delete_fails_if_the_tags_cannot_be_listed(
    talk: "Talk", gate: Gate, scripted: "Scripted", tags: Tags, message: str
) -> None:
    """If the tags cannot be listed, the delete gets 503 and is not forwarded."""
    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        failed = await delete(agent, "work/app", DIGEST)

    assert (failed.status, failed.code) == (503, "UNAVAILABLE")
    assert message in failed.message
    assert not any(line.startswith("DELETE") for line in tags.requests)


async def test_a_search_for_protected_tags_ends_at_its_timeout(talk: "Talk", scripted: "Scripted") -> None:
    """If the registry does not respond during the search, the delete gets 503 with that reason."""
    policy = GroupPolicy.build("ci", delete=("work/**",), immutable_tags=("*",))
    gate = gate_with(policy, timeouts=Timeouts(search=0.02))
    tags = Tags(held=asyncio.Event())

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        failed = await delete(agent, "work/app", DIGEST)

    assert failed.status == 503
    assert f"{DIGEST} was not deleted: the search for protected tags of work/app" in failed.message
    assert "did not finish within 0.02 s" in failed.message


async def test_an_agent_has_one_search_for_protected_tags_at_a_time(
    talk: "Talk", gate: Gate, scripted: "Scripted"
) -> None:
    """A second search of an agent waits for the first one; the search of another agent does not."""
    held = asyncio.Event()
    tags = Tags([b'{"tags": null}'] * 3, held=held)

    async with (
        scripted(tags) as registry,
        talk(gate, registry.endpoint) as first,
        talk(gate, registry.endpoint) as second,
        talk(gate, registry.endpoint, agent_id=OTHER) as other,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(delete(first, "work/first", DIGEST), name="first delete")
        await tags.started.wait()
        tags.started.clear()
        tasks.create_task(delete(second, "work/second", DIGEST), name="second delete")
        tasks.create_task(delete(other, "work/other", DIGEST), name="delete of another agent")
        await tags.started.wait()
        asked = list(tags.requests)
        held.set()

    assert asked == ["GET /v2/work/first/tags/list", "GET /v2/work/other/tags/list"]
