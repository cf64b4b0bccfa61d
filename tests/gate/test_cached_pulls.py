"""The cache in the gate: one fetch serves all, and the registry's word and the policy count as without it."""

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.cached_gate import LARGE, RESTRICTED, CachedGate, gets, same
from tests.gate.docker_registry import digest_of
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.gate.holdings import REMEMBERED_SECONDS

if TYPE_CHECKING:
    from tests.gate.conftest import Talk
    from tests.gate.docker_registry import Registry


async def test_a_blob_is_read_from_the_registry_once(talk: "Talk", registry: "Registry", cached: CachedGate) -> None:
    """Two agents get a blob with the registry's own head and content, and the registry reads it once."""
    digest = registry.push_blob("team/app", LARGE)
    target = f"/v2/team/app/blobs/{digest}"

    async with talk(gate_with(GroupPolicy.build("ci")), registry.endpoint) as agent:
        plain = await agent.ask("GET", target)
    before = gets(registry, target)
    async with talk(cached.gate, registry.endpoint) as agent:
        first = await agent.ask("GET", target)
        await cached.stored(digest)
    async with talk(cached.gate, registry.endpoint, AgentId("static:other")) as agent:
        second = await agent.ask("GET", target)

    assert same(plain, first)
    assert same(plain, second)
    await until(lambda: gets(registry, target) == before + 1)
    assert (cached.pulls.counts.hits, cached.pulls.counts.misses) == (1, 1)


async def test_a_small_blob_and_a_manifest_by_digest_come_from_memory(
    talk: "Talk", registry: "Registry", cached: CachedGate
) -> None:
    """A configuration and a manifest are asked for once; then both are served without a request."""
    digest = registry.push_image("team/small", "v1", b"layer of a small image")
    config = digest_of(b"{}")
    targets = [f"/v2/team/small/manifests/{digest}", f"/v2/team/small/blobs/{config}"]

    async with talk(gate_with(GroupPolicy.build("ci")), registry.endpoint) as agent:
        plain = [await agent.ask("GET", target) for target in targets]
    async with talk(cached.gate, registry.endpoint) as agent:
        first = [await agent.ask("GET", target) for target in targets]
        asked = [registry.access_log().count(target) for target in targets]
        second = [await agent.ask("GET", target) for target in targets]

    assert all(map(same, plain, first))
    assert all(map(same, plain, second))
    assert [registry.access_log().count(target) for target in targets] == asked
    assert cached.files() == []


async def test_all_who_ask_at_once_read_one_download(talk: "Talk", registry: "Registry", cached: CachedGate) -> None:
    """Eight agents that ask at the same time get the blob from one download."""
    content = LARGE + b"of eight"
    digest = registry.push_blob("team/app", content)
    target = f"/v2/team/app/blobs/{digest}"

    async def pull(number: int) -> bytes:
        async with talk(cached.gate, registry.endpoint, AgentId(f"static:{number}")) as agent:
            return (await agent.ask("GET", target)).body

    bodies = await asyncio.gather(*map(pull, range(8)))

    assert all(body == content for body in bodies)
    await until(lambda: gets(registry, target) == 1)


@pytest.mark.parametrize("wanted", ["0-0", "5-", "-7", "100-1048576", "3145000-99999999", "0-"])
async def test_a_range_is_the_registrys(talk: "Talk", registry: "Registry", cached: CachedGate, wanted: str) -> None:
    """A range from the cache has the head and the bytes that the registry would send."""
    digest = registry.push_blob("team/app", LARGE)
    target, lines = f"/v2/team/app/blobs/{digest}", f"Range: bytes={wanted}"

    async with talk(gate_with(GroupPolicy.build("ci")), registry.endpoint) as agent:
        plain = await agent.ask("GET", target, lines)
    async with talk(cached.gate, registry.endpoint) as agent:
        first = await agent.ask("GET", target, lines)
        await agent.ask("GET", target)
        await cached.stored(digest)
        hits = cached.pulls.counts.hits
        second = await agent.ask("GET", target, lines)

    assert plain.status == 206
    assert same(plain, first)
    assert same(plain, second)
    assert cached.pulls.counts.hits == hits + 1


@pytest.mark.parametrize("line", ["Range: bytes=1-2,4-5", "If-None-Match: *"])
async def test_what_the_cache_does_not_know_the_registry_answers(
    talk: "Talk", registry: "Registry", cached: CachedGate, line: str
) -> None:
    """Other ranges and conditions are left to the registry."""
    digest = registry.push_blob("team/app", LARGE)
    target = f"/v2/team/app/blobs/{digest}"

    async with talk(gate_with(GroupPolicy.build("ci")), registry.endpoint) as agent:
        plain = await agent.ask("GET", target, line)
    async with talk(cached.gate, registry.endpoint) as agent:
        through = await agent.ask("GET", target, line)

    # The boundary of a multipart body is random.
    assert through.status == plain.status
    assert len(through.body) == len(plain.body)
    assert cached.files() == []


async def test_a_cached_blob_does_not_cross_a_policy(talk: "Talk", registry: "Registry", cached: CachedGate) -> None:
    """A blob in the cache is refused to a group that may not pull its repository, and 404 where it is not."""
    content = LARGE + b"a secret"
    digest = registry.push_blob("secret/app", content)

    async with talk(cached.gate, registry.endpoint) as agent:
        assert (await agent.ask("GET", f"/v2/secret/app/blobs/{digest}")).body == content
        await cached.stored(digest)
    async with talk(cached.gate, registry.endpoint, RESTRICTED) as agent:
        denied = await agent.ask("GET", f"/v2/secret/app/blobs/{digest}")
        elsewhere = await agent.ask("GET", f"/v2/team/app/blobs/{digest}")

    assert (denied.status, elsewhere.status) == (403, 404)


async def test_a_delete_through_the_gate_takes_effect_at_once(
    talk: "Talk", registry: "Registry", cached: CachedGate
) -> None:
    """After a delete through the gate, the blob is gone for everybody, although the cache has it."""
    digest = registry.push_blob("team/deleted", LARGE)
    target = f"/v2/team/deleted/blobs/{digest}"

    async with talk(cached.gate, registry.endpoint) as agent:
        assert (await agent.ask("GET", target)).status == 200
        await cached.stored(digest)
        assert (await agent.ask("GET", target)).status == 200
        assert (await agent.ask("DELETE", target)).status == 202
        assert (await agent.ask("GET", target)).status == 404


async def test_a_delete_behind_the_gates_back_takes_effect_in_seconds(
    talk: "Talk", registry: "Registry", cached: CachedGate
) -> None:
    """A blob that was deleted on the registry itself is served until the confirmation expires, and not after."""
    digest = registry.push_blob("team/removed", LARGE)
    target = f"/v2/team/removed/blobs/{digest}"

    async with talk(cached.gate, registry.endpoint) as agent:
        assert (await agent.ask("GET", target)).status == 200
        await cached.stored(digest)
        assert registry.ask("DELETE", target)[0] == 202
        cached.now = REMEMBERED_SECONDS - 0.1
        assert (await agent.ask("GET", target)).status == 200
        cached.now = REMEMBERED_SECONDS
        assert (await agent.ask("GET", target)).status == 404


async def test_a_restart_serves_what_is_complete_and_removes_the_rest(
    talk: "Talk", registry: "Registry", cached: CachedGate
) -> None:
    """A new process serves a complete blob from the disk, and removes the files of downloads that a crash ended."""
    digest = registry.push_blob("team/app", LARGE)
    target = f"/v2/team/app/blobs/{digest}"
    async with talk(cached.gate, registry.endpoint) as agent:
        await agent.ask("GET", target)
        await cached.stored(digest)
    (cached.folder / "incoming/part-half").write_bytes(LARGE[:1000])
    asked = gets(registry, target)

    restarted = CachedGate(cached.folder)
    async with talk(restarted.gate, registry.endpoint) as agent:
        answer = await agent.ask("GET", target)

    assert answer.body == LARGE
    assert gets(registry, target) == asked
    assert restarted.files() == [digest.partition(":")[2]]


async def test_answers_are_the_same_with_and_without_the_cache(
    talk: "Talk", registry: "Registry", cached: CachedGate
) -> None:
    """Every kind of pull gets the same answer with the cache and without it, several times in any order."""
    blob, small = registry.push_blob("team/app", LARGE), registry.push_blob("team/app", b"small")
    manifest = registry.push_image("team/app", "same", b"layer")
    absent = f"sha256:{hashlib.sha256(b'absent').hexdigest()}"
    paths = [f"/v2/team/app/blobs/{digest}" for digest in (blob, small, absent)]
    paths += [f"/v2/team/app/manifests/{reference}" for reference in (manifest, "same", "none", absent)]
    paths += [f"/v2/other/app/blobs/{blob}", f"/v2/other/app/manifests/{manifest}", "/v2/", "/v2/team/app/tags/list"]
    lines = [(), ("Range: bytes=1-3",), ("Range: bytes=-2",), ('If-None-Match: "x"',), ("Accept: text/plain",)]

    async with (
        talk(gate_with(GroupPolicy.build("ci")), registry.endpoint) as plain,
        talk(cached.gate, registry.endpoint) as through,
    ):
        for _ in range(2):
            for path in paths:
                for more in lines:
                    for method in ("GET", "HEAD"):
                        expected, found = await plain.ask(method, path, *more), await through.ask(method, path, *more)
                        assert same(expected, found), (method, path, more, expected.headers, found.headers)
