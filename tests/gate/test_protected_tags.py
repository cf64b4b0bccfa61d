"""A protected tag is written once: the same manifest may be pushed again, another may not, and none can be deleted."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.docker_registry import digest_of
from tests.gate.stateful_registry import stateful_registry
from tests.gate.tags_registry import HEX, KIND, OTHER, Tags, pointing_to, push
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.manifest import MAX_MANIFEST, PushedManifest, TaggedManifest
from tunnelmgr.gate.push import MAX_BUFFERED_MANIFESTS

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, Reply, Scripted, Talk
    from tests.gate.docker_registry import Registry


Grants = Callable[..., Gate]


@pytest.fixture
def gate() -> Gate:
    """Return a gate whose group may push and delete, but not change releases."""
    policy = GroupPolicy.build("ci", push=("work/**",), delete=("work/**",), immutable_tags=("release-*",))
    return gate_with(policy)


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
    """With the gate as without it, docker-registry 2.8 ignores the tags of a push by digest."""
    manifest = registry.manifest("work/app", b"by digest")

    async with talk(gate, registry.endpoint) as agent:
        pushed = await push_with_tags(agent, manifest, "edge")
        by_tag = await agent.ask("GET", "/v2/work/app/manifests/edge")

    assert (pushed.status, by_tag.status) == (201, 404)


async def test_a_push_fails_if_its_tag_cannot_be_resolved(talk: "Talk", gate: Gate, scripted: "Scripted") -> None:
    """If the registry neither confirms nor denies a protected tag, the push gets 503 and is not forwarded."""
    tags = Tags(head_response=b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        failed = await push(agent, "work/app", "release-1", b"{}")

    assert failed.status == 503
    assert "answered 500 when asked for tag release-1" in failed.message
    assert not any(line.startswith("PUT") for line in tags.requests)


async def test_a_push_is_refused_if_the_registry_reports_no_digest(
    talk: "Talk", gate: Gate, scripted: "Scripted"
) -> None:
    """A protected tag that exists with an unknown digest counts as another manifest."""
    async with scripted(Tags(head_response=pointing_to(""))) as registry, talk(gate, registry.endpoint) as agent:
        refused = await push(agent, "work/app", "release-1", b"{}")

    assert refused.status == 403
    assert (
        "work/app:release-1 exists, with a digest that is not reported, and may not be overwritten" in refused.message
    )


async def test_a_query_whose_response_closes_the_connection_is_followed_by_a_new_one(
    talk: "Talk", gate: Gate, scripted: "Scripted"
) -> None:
    """After a query whose response closes the connection, the manifest is sent on a new one."""
    tags = Tags(head_response=b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\n")

    async with scripted(tags) as registry, talk(gate, registry.endpoint) as agent:
        pushed = await push(agent, "work/app", "release-1", b"{}")

    assert pushed.status == 201
    assert registry.connections == 2


# --- overlapping requests ---


Request = tuple[str, str, bytes]
"""Method, target and body of a request."""
SendOverlapping = Callable[[Request, Request], Awaitable[tuple["Reply", "Reply"]]]


@pytest.fixture
def send_overlapping(talk: "Talk", gate: Gate, scripted: "Scripted") -> SendOverlapping:
    """Send a second agent's request while the registry handles the query of the first one's; return both responses."""

    async def send_both(first: Request, then: Request) -> tuple["Reply", "Reply"]:
        held = asyncio.Event()
        tags = Tags(held=held)
        async with (
            scripted(tags) as registry,
            talk(gate, registry.endpoint) as one,
            talk(gate, registry.endpoint, agent_id=OTHER) as other,
            asyncio.TaskGroup() as tasks,
        ):
            earlier = tasks.create_task(one.ask(*first[:2], KIND, body=first[2]), name="first request")
            await tags.started.wait()
            tags.started.clear()
            second = tasks.create_task(other.ask(*then[:2], KIND, body=then[2]), name="second request")
            resolving = tasks.create_task(tags.started.wait(), name="second query")
            await asyncio.wait((second, resolving), return_when=asyncio.FIRST_COMPLETED)
            resolving.cancel()
            held.set()
            return await earlier, await second

    return send_both


RELEASE = "/v2/work/app/manifests/release-1"


async def test_of_two_agents_that_write_a_protected_tag_at_once_one_is_refused(
    send_overlapping: SendOverlapping,
) -> None:
    """Of two agents that push different manifests to a free protected tag at once, one is refused."""
    pushed, refused = await send_overlapping(("PUT", RELEASE, b"{}"), ("PUT", RELEASE, b"{ }"))

    assert (pushed.status, refused.status) == (201, 403)
    assert "another push of work/app:release-1, or a delete of its manifest, is in progress" in refused.message


async def test_two_agents_may_push_the_same_manifest_to_a_protected_tag_at_once(
    send_overlapping: SendOverlapping,
) -> None:
    """Two agents may push the same manifest to a protected tag at once."""
    both = await send_overlapping(("PUT", RELEASE, b"{}"), ("PUT", RELEASE, b"{}"))

    assert [answer.status for answer in both] == [201, 201]


async def test_a_manifest_is_not_deleted_while_it_is_pushed_under_a_protected_tag(
    send_overlapping: SendOverlapping,
) -> None:
    """A delete of a manifest is refused while the manifest is being pushed under a protected tag."""
    pushed, refused = await send_overlapping(
        ("PUT", RELEASE, b"{}"),
        ("DELETE", f"/v2/work/app/manifests/{digest_of(b'{}')}", b""),
    )

    assert (pushed.status, refused.status) == (201, 403)
    assert f"{digest_of(b'{}')} is being pushed under a protected tag" in refused.message


async def test_a_manifest_is_not_pushed_under_a_protected_tag_while_it_is_deleted(
    send_overlapping: SendOverlapping,
) -> None:
    """A push under a protected tag is refused while its manifest is being deleted."""
    deleted, refused = await send_overlapping(
        ("DELETE", f"/v2/work/app/manifests/{digest_of(b'{}')}", b""),
        ("PUT", RELEASE, b"{}"),
    )

    assert (deleted.status, refused.status) == (202, 403)
