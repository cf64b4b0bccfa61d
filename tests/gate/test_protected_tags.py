"""A protected tag is written once: the same manifest may be pushed again, another may not, and none can be deleted."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.conftest import MANIFEST_TYPE, digest_of
from tests.gate.stateful_registry import stateful_registry
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.manifest import MAX_MANIFEST, PushedManifest, TaggedManifest
from tunnelmgr.gate.push import MAX_BUFFERED_MANIFESTS
from tunnelmgr.gate.timeouts import Timeouts

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, Registry, Reply, Scripted, Talk

KIND = f"Content-Type: {MANIFEST_TYPE}"
OTHER = AgentId("static:other")
HEX = "0123456789abcdef" * 4

Grants = Callable[..., Gate]


@pytest.fixture
def gate() -> Gate:
    """Return a gate whose group may push and delete, but not change releases."""
    policy = GroupPolicy.build("ci", push=("work/**",), delete=("work/**",), immutable_tags=("release-*",))
    return gate_with(policy)


async def push(agent: "Conversation", repository: str, tag: str, manifest: bytes, *lines: str) -> "Reply":
    """Push a manifest under a tag."""
    return await agent.ask("PUT", f"/v2/{repository}/manifests/{tag}", *(lines or (KIND,)), body=manifest)


async def delete(agent: "Conversation", repository: str, reference: str, kind: str = "manifests") -> "Reply":
    """Delete a manifest or a blob."""
    return await agent.ask("DELETE", f"/v2/{repository}/{kind}/{reference}")


# --- pushing ---


async def test_the_same_manifest_may_be_pushed_to_a_protected_tag_again(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """The same manifest may be pushed to a protected tag again, counted or chunked, on the same channel."""
    manifest = registry.manifest("work/twice", b"twice")
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(manifest), manifest)
    head = f"PUT /v2/work/twice/manifests/release-1 HTTP/1.1\r\nHost: localhost:5000\r\n{KIND}\r\n"

    async with talk(gate, registry.endpoint) as agent:
        statuses = [(await push(agent, "work/twice", "release-1", manifest)).status for _ in "12"]
        agent.channel.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks)
        chunked = await agent.answer("PUT")

    assert statuses == [201, 201]
    assert (chunked.status, chunked.headers["docker-content-digest"]) == (201, digest_of(manifest))


async def test_another_manifest_may_not_be_pushed_to_a_protected_tag(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """The refusal of another manifest shows the rule and the tag's digest, and the channel continues."""
    first, second = (registry.manifest("work/stable", layer) for layer in (b"first", b"second"))

    async with talk(gate, registry.endpoint) as agent:
        pushed = await push(agent, "work/stable", "release-1", first)
        refused = await push(agent, "work/stable", "release-1", second)
        free = [(await push(agent, "work/stable", "latest", manifest)).status for manifest in (first, second)]

    assert (pushed.status, free) == (201, [201, 201])
    assert (refused.status, refused.code) == (403, "DENIED")
    assert refused.message == (
        f"tunnelmgr: work/stable:release-1 points to {digest_of(first)} and may not be overwritten "
        "(immutable_tags release-*); push another tag"
    )


async def test_the_same_bytes_as_another_media_type_are_another_manifest(
    talk: "Talk", gate: Gate, registry: "Registry"
) -> None:
    """The same bytes with another media type are refused, since some registries store the type separately."""
    manifest = registry.manifest("work/type", b"type")

    async with talk(gate, registry.endpoint) as agent:
        await push(agent, "work/type", "release-1", manifest)
        refused = await push(agent, "work/type", "release-1", manifest, "Content-Type: application/json")
        parameters = await push(agent, "work/type", "release-1", manifest, f"{KIND.upper()}; charset=utf-8")

    assert (refused.status, parameters.status) == (403, 201)


async def test_fallback_tags_of_referrers_are_rewritten_although_every_tag_is_protected(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """With `["*"]`, the requests of `oras attach` and of a second `cosign sign` succeed."""
    first, second = (registry.manifest("work/signed", layer) for layer in (b"one signature", b"two signatures"))
    gate = gate_for(push=("work/**",), immutable_tags=("*",))

    async with talk(gate, registry.endpoint) as agent:
        for tag in (f"sha256-{HEX}", f"sha256-{HEX}.sig"):
            statuses = [(await push(agent, "work/signed", tag, manifest)).status for manifest in (first, second)]
            assert statuses == [201, 201]
        await push(agent, "work/signed", "v1", first)
        refused = await push(agent, "work/signed", "v1", second)

    assert refused.status == 403


@pytest.mark.parametrize("announced", [True, False])
async def test_a_manifest_of_more_than_4_mib_is_refused(
    talk: "Talk", gate: Gate, registry: "Registry", *, announced: bool
) -> None:
    """A manifest of more than 4 MiB for a protected tag is refused at its Content-Length, or once it grows too long."""
    head = b"PUT /v2/work/big/manifests/release-1 HTTP/1.1\r\nHost: localhost:5000\r\n"
    piece = bytes(MAX_MANIFEST // 4)

    async with talk(gate, registry.endpoint) as agent:
        if announced:
            agent.channel.send(head + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (MAX_MANIFEST + 1))
        else:
            agent.channel.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(5):
                agent.channel.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert (refused.status, refused.code, agent.interim) == (413, "MANIFEST_INVALID", [])
    assert "longer than 4194304 bytes" in refused.message


async def test_an_agent_cannot_fill_the_memory_with_manifests(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """An agent has at most `MAX_BUFFERED_MANIFESTS` manifests in memory; the next one waits until one has ended."""
    manifest = registry.manifest("work/many", b"many")
    head = b"PUT /v2/work/many/manifests/release-%d HTTP/1.1\r\nHost: localhost:5000\r\nContent-Length: %d\r\n"
    expecting = head + KIND.encode() + b"\r\nExpect: 100-continue\r\n\r\n"

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        opened = [talk(gate, registry.endpoint) for _ in range(MAX_BUFFERED_MANIFESTS + 1)]
        agents = [await one.__aenter__() for one in opened]
        for number, agent in enumerate(agents):
            agent.channel.send(expecting % (number, len(manifest)))
        for agent in agents[:-1]:
            async with agent.channel.changed:
                await agent.channel.changed.wait_for(lambda agent=agent: agent.channel.outgoing)
        waiting = not agents[-1].channel.outgoing
        answers = []
        for agent, one in zip(agents, opened, strict=True):
            agent.channel.send(manifest)
            answers.append((await agent.answer("PUT")).status)
            tasks.create_task(one.__aexit__(None, None, None), name="end of a channel")

    assert waiting
    assert answers == [201] * len(agents)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_manifest_is_compared_by_the_algorithm_that_the_registry_uses(algorithm: str) -> None:
    """A manifest is compared by the registry's digest algorithm, and differs from any of an unknown algorithm."""
    manifest = PushedManifest(b"a/b")
    for piece in (b"{", b"}"):
        manifest.add(piece)
    digest = f"{algorithm}:{hashlib.new(algorithm, b'{}').hexdigest()}"

    assert manifest.is_same(TaggedManifest(digest, b"a/b"))
    assert not manifest.is_same(TaggedManifest(digest, b"a/c"))
    assert not manifest.is_same(TaggedManifest(f"{algorithm}:{'0' * len(digest)}", b"a/b"))
    assert not manifest.is_same(TaggedManifest(digest.replace(algorithm, "blake3"), b"a/b"))


async def test_an_empty_manifest_is_forwarded(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """A manifest without a body is forwarded, and the registry refuses it."""
    async with talk(gate, registry.endpoint) as agent:
        refused = await push(agent, "work/empty", "release-1", b"")

    assert (refused.status, refused.code) == (400, "MANIFEST_INVALID")


# --- pushing by digest with tags (OCI distribution spec, "Pushing Manifests", of its development version) ---


async def push_with_tags(agent: "Conversation", manifest: bytes, *tags: str) -> "Reply":
    """Push a manifest by its digest, with tags."""
    query = "&".join(f"tag={tag}" for tag in tags)
    target = f"/v2/work/app/manifests/{digest_of(manifest)}?{query}"
    return await agent.ask("PUT", target, KIND, body=manifest)


async def test_a_push_by_digest_writes_all_its_tags_or_none(talk: "Talk", gate: Gate) -> None:
    """A push by digest is refused whole if one of its protected tags points to another manifest."""
    with stateful_registry() as server:
        async with talk(gate, Endpoint("127.0.0.1", server.server_port)) as agent:
            first = await push_with_tags(agent, b"{}", "latest", "release-1")
            again = await push_with_tags(agent, b"{}", "release-1", "release-2")
            refused = await push_with_tags(agent, b"{ }", "latest", "release-2")
            free = await push_with_tags(agent, b"{ }", "latest", "edge")

    assert [reply.status for reply in (first, again, refused, free)] == [201, 201, 403, 201]
    assert first.headers["oci-tag"] == "latest, release-1"
    assert "work/app:release-2 points to" in refused.message
    assert {tag: digest for (_, tag), digest in server.tags.items()} == {
        "release-1": digest_of(b"{}"),
        "release-2": digest_of(b"{}"),
        "latest": digest_of(b"{ }"),
        "edge": digest_of(b"{ }"),
    }


async def test_tags_of_a_push_by_digest_are_forwarded_unchanged(talk: "Talk", gate: Gate, registry: "Registry") -> None:
    """docker-registry 2.8 stores the manifest and ignores the tags of a push by digest, as without the gate."""
    manifest = registry.manifest("work/app", b"by digest")

    async with talk(gate, registry.endpoint) as agent:
        pushed = await push_with_tags(agent, manifest, "edge")
        by_tag = await agent.ask("GET", "/v2/work/app/manifests/edge")

    assert (pushed.status, by_tag.status) == (201, 404)


# --- deleting ---


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


# --- a registry by script: what the real one does seldom ---


@dataclass
class Tags:
    """A registry of one repository that responds by a script, and keeps the requests."""

    pages: list[bytes] = field(default_factory=lambda: [b'{"tags": ["release-1"]}'])
    status: int = 200
    looked_up: bytes = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n"
    asked: list[str] = field(default_factory=list)
    held: asyncio.Event | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve each request on one connection."""
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(" ", 2)
            self.asked.append(f"{method} {target}")
            self.begun.set()
            if self.held is not None:
                await self.held.wait()
            if length := head.lower().partition("content-length: ")[2].partition("\r\n")[0]:
                await reader.readexactly(int(length))
            writer.write(self._answer(method))

    def _answer(self, method: str) -> bytes:
        if method == "HEAD":
            return self.looked_up
        if method == "GET":
            page = self.pages.pop(0)
            link = b"Link: </v2/next>; rel=next\r\n" if self.pages else b""
            return b"HTTP/1.1 %d OK\r\n%bContent-Length: %d\r\n\r\n%b" % (self.status, link, len(page), page)
        status = b"202 Accepted" if method == "DELETE" else b"201 Created"
        return b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status


def pointing_to(digest: str, kind: str = MANIFEST_TYPE) -> bytes:
    """Return the response to a HEAD of a tag."""
    return (
        f"HTTP/1.1 200 OK\r\nDocker-Content-Digest: {digest}\r\nContent-Type: {kind}\r\nContent-Length: 9\r\n\r\n"
    ).encode()


DIGEST = f"sha256:{HEX}"


async def test_every_page_of_tags_is_read_before_a_delete(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """A delete is refused if only the last page of tags has the protected tag that points to the manifest."""
    pages = [json.dumps({"tags": tags}).encode() for tags in (["a", "b"], ["c", 5, "/"], ["release-1"])]
    tags = Tags([*pages], looked_up=pointing_to(DIGEST))

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        refused = await delete(agent, "work/app", DIGEST)

    assert refused.status == 403
    assert tags.asked == [
        "GET /v2/work/app/tags/list",
        "GET /v2/work/app/tags/list?last=b",
        "GET /v2/work/app/tags/list?last=c",
        "HEAD /v2/work/app/manifests/release-1",
    ]


async def test_a_listed_tag_without_a_manifest_protects_nothing(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """A tag that is listed and has no manifest any more does not prevent a delete."""
    tags = Tags()

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        deleted = await delete(agent, "work/app", DIGEST)

    assert (deleted.status, tags.asked[-1]) == (202, f"DELETE /v2/work/app/manifests/{DIGEST}")


@pytest.mark.parametrize(
    ("looked_up", "message"),
    [
        (pointing_to(""), "the registry reports no sha256 digest of work/app:release-1"),
        (pointing_to(f"sha512:{HEX}{HEX}"), "the registry reports no sha256 digest of work/app:release-1"),
    ],
)
async def test_a_delete_is_refused_if_a_tags_digest_is_unknown(
    talk: "Talk", gate: Gate, scripted: "Scripted", looked_up: bytes, message: str
) -> None:
    """A delete is refused if the registry reports no comparable digest for a protected tag."""
    tags = Tags(looked_up=looked_up)

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
    assert sum(line.startswith("HEAD") for line in tags.asked) == 2


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
    assert not any(line.startswith("DELETE") for line in tags.asked)


async def test_a_push_fails_if_its_tag_cannot_be_resolved(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """If the registry neither confirms nor denies a protected tag, the push gets 503 and is not forwarded."""
    tags = Tags(looked_up=b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        failed = await push(agent, "work/app", "release-1", b"{}")

    assert failed.status == 503
    assert "answered 500 when asked for tag release-1" in failed.message
    assert not any(line.startswith("PUT") for line in tags.asked)


async def test_a_push_is_refused_if_the_registry_reports_no_digest(
    talk: "Talk", gate: Gate, scripted: "Scripted"
) -> None:
    """A protected tag that exists with an unknown digest counts as another manifest."""
    async with scripted(Tags(looked_up=pointing_to(""))) as registry, talk(gate, registry.endpoint) as agent:
        refused = await push(agent, "work/app", "release-1", b"{}")

    assert refused.status == 403
    assert (
        "work/app:release-1 exists, with a digest that is not reported, and may not be overwritten" in refused.message
    )


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


async def test_a_query_whose_response_closes_the_connection_is_followed_by_a_new_one(
    talk: "Talk", gate: Gate, scripted: "Scripted"
) -> None:
    """After a query whose response closes the connection, the manifest is sent on a new one."""
    tags = Tags(looked_up=b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\n")

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        pushed = await push(agent, "work/app", "release-1", b"{}")

    assert pushed.status == 201
    assert registry.connections == 2


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
        await tags.begun.wait()
        tags.begun.clear()
        tasks.create_task(delete(second, "work/second", DIGEST), name="second delete")
        tasks.create_task(delete(other, "work/other", DIGEST), name="delete of another agent")
        await tags.begun.wait()
        asked = list(tags.asked)
        held.set()

    assert asked == ["GET /v2/work/first/tags/list", "GET /v2/work/other/tags/list"]


# --- at the same time ---


Ask = tuple[str, str, bytes]
"""Method, target and body of a request."""
Meanwhile = Callable[[Ask, Ask], Awaitable[tuple["Reply", "Reply"]]]


@pytest.fixture
def meanwhile(talk: "Talk", gate: Gate, scripted: "Scripted") -> Meanwhile:
    """Send a second agent's request while the registry handles the query of the first one's; return both responses."""

    async def ask_both(first: Ask, then: Ask) -> tuple["Reply", "Reply"]:
        held = asyncio.Event()
        tags = Tags(held=held)
        async with (
            scripted(tags) as registry,
            talk(gate, registry.endpoint) as one,
            talk(gate, registry.endpoint, agent_id=OTHER) as other,
            asyncio.TaskGroup() as tasks,
        ):
            begun = tasks.create_task(one.ask(*first[:2], KIND, body=first[2]), name="first request")
            await tags.begun.wait()
            tags.begun.clear()
            second = tasks.create_task(other.ask(*then[:2], KIND, body=then[2]), name="second request")
            resolving = tasks.create_task(tags.begun.wait(), name="second query")
            await asyncio.wait((second, resolving), return_when=asyncio.FIRST_COMPLETED)
            resolving.cancel()
            held.set()
            return await begun, await second

    return ask_both


RELEASE = "/v2/work/app/manifests/release-1"


async def test_of_two_agents_that_write_a_protected_tag_at_once_one_is_refused(meanwhile: Meanwhile) -> None:
    """Of two agents that push different manifests to a free protected tag at once, one is refused."""
    pushed, refused = await meanwhile(("PUT", RELEASE, b"{}"), ("PUT", RELEASE, b"{ }"))

    assert (pushed.status, refused.status) == (201, 403)
    assert "another push of work/app:release-1, or a delete of its manifest, is in progress" in refused.message


async def test_two_agents_may_push_the_same_manifest_to_a_protected_tag_at_once(meanwhile: Meanwhile) -> None:
    """Two agents may push the same manifest to a protected tag at once."""
    both = await meanwhile(("PUT", RELEASE, b"{}"), ("PUT", RELEASE, b"{}"))

    assert [answer.status for answer in both] == [201, 201]


async def test_a_manifest_is_not_deleted_while_it_is_pushed_under_a_protected_tag(meanwhile: Meanwhile) -> None:
    """A delete of a manifest is refused while the manifest is being pushed under a protected tag."""
    pushed, refused = await meanwhile(
        ("PUT", RELEASE, b"{}"),
        ("DELETE", f"/v2/work/app/manifests/{digest_of(b'{}')}", b""),
    )

    assert (pushed.status, refused.status) == (201, 403)
    assert f"{digest_of(b'{}')} is being pushed under a protected tag" in refused.message


async def test_a_manifest_is_not_pushed_under_a_protected_tag_while_it_is_deleted(meanwhile: Meanwhile) -> None:
    """A push under a protected tag is refused while its manifest is being deleted."""
    deleted, refused = await meanwhile(
        ("DELETE", f"/v2/work/app/manifests/{digest_of(b'{}')}", b""),
        ("PUT", RELEASE, b"{}"),
    )

    assert (deleted.status, refused.status) == (202, 403)
