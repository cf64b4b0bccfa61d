"""The cache in the gate when a disk or a registry fails: a fault costs the cache, not the pull."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gate.cached_gate import LARGE, MIB, CachedGate
from tests.gate.docker_registry import digest_of
from tests.until import until
from tunnelmgr.cache.blob_cache import MAX_DOWNLOADS_OF_ONE
from tunnelmgr.core.agent import AgentId

if TYPE_CHECKING:
    from tests.gate.conftest import Script, Scripted, Talk
    from tests.gate.docker_registry import Registry


def serving(content: bytes, digest: str, *, cut: int | None = None, body: bytes | None = None) -> "Script":
    """Script a registry with one blob, whose whole GET is `body`, or ends after `cut` bytes; ranges are right."""
    sent = content if body is None else body

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if "range: bytes=" in head.lower():
                start = int(head.lower().partition("range: bytes=")[2].partition("-")[0])
                lines = f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}\r\nContent-Length: "
                lines += str(len(content) - start)
                writer.write(f"HTTP/1.1 206 Partial Content\r\n{lines}\r\n\r\n".encode() + content[start:])
                continue
            lines = f"Content-Length: {len(content)}\r\nDocker-Content-Digest: {digest}"
            writer.write(f"HTTP/1.1 200 OK\r\n{lines}\r\n\r\n".encode())
            if head.startswith("GET"):
                writer.write(sent[:cut])
                if cut is not None:
                    await writer.drain()
                    return

    return script


async def test_another_digest_never_reaches_a_client_whole(
    talk: "Talk", scripted: "Scripted", cached: CachedGate
) -> None:
    """If the registry sends other content, the client misses its last byte, and nothing is stored."""
    digest, wrong = digest_of(LARGE), LARGE[:-1] + bytes([LARGE[-1] ^ 1])

    async with (
        scripted(serving(LARGE, digest, body=wrong)) as registry,
        talk(cached.gate, registry.endpoint) as agent,
    ):
        agent.channel.send(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
        await agent.finished()
        received = bytes(agent.channel.outgoing).partition(b"\r\n\r\n")[2]

    assert received == wrong[:-1]
    await until(lambda: cached.files() == [])


async def test_a_truncated_answer_is_continued_by_the_registry(
    talk: "Talk", scripted: "Scripted", cached: CachedGate
) -> None:
    """If the download breaks off, its reader gets the rest from the registry, and nothing is stored."""
    digest = digest_of(LARGE)

    async with (
        scripted(serving(LARGE, digest, cut=MIB)) as registry,
        talk(cached.gate, registry.endpoint) as agent,
    ):
        answer = await agent.ask("GET", f"/v2/a/blobs/{digest}")

    assert answer.body == LARGE
    await until(lambda: cached.files() == [])


@pytest.mark.parametrize("fault", ["min_free", "size"])
async def test_a_disk_without_room_costs_no_pull(
    talk: "Talk", registry: "Registry", tmp_path: Path, fault: str
) -> None:
    """If a blob does not fit, its readers get it from the registry."""
    digest = registry.push_blob("team/app", LARGE)
    full = CachedGate(tmp_path, min_free=2**60) if fault == "min_free" else CachedGate(tmp_path, size=MIB)

    async with talk(full.gate, registry.endpoint) as agent:
        answer = await agent.ask("GET", f"/v2/team/app/blobs/{digest}")

    assert answer.body == LARGE
    assert full.files() == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_without_room_the_registrys_own_answer_is_sent(
    talk: "Talk", scripted: "Scripted", tmp_path: Path, *, chunked: bool
) -> None:
    """What does not fit is served even by a registry that ignores ranges, or whose GET is chunked unlike its HEAD.

    A pull-through cache ignores ranges while it fetches.
    """
    digest, full = digest_of(LARGE), CachedGate(tmp_path, min_free=2**60)

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET") and chunked:
                lines = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(LARGE)
                writer.write(b"HTTP/1.1 200 OK\r\n" + lines + LARGE + b"\r\n0\r\n\r\n")
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE))
            if head.startswith(b"GET"):
                writer.write(LARGE)

    async with scripted(whole) as registry, talk(full.gate, registry.endpoint) as agent:
        answer = await agent.ask("GET", f"/v2/a/blobs/{digest}")

    assert answer.body == LARGE


async def test_the_rest_of_a_blob_does_not_wait_for_its_start(
    talk: "Talk", scripted: "Scripted", cached: CachedGate
) -> None:
    """A pull that resumes gets its part from the registry, whether or not the blob is being downloaded for another."""
    digest, started = digest_of(LARGE), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"range: bytes=%d-" % (2 * MIB) in head.lower():
                lines = b"Content-Range: bytes %d-%d/%d\r\n" % (2 * MIB, len(LARGE) - 1, len(LARGE))
                lines += b"Content-Length: %d\r\n" % (len(LARGE) - 2 * MIB)
                writer.write(b"HTTP/1.1 206 Partial Content\r\n" + lines + b"\r\n" + LARGE[2 * MIB :])
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE))
            if head.startswith(b"GET"):
                writer.write(LARGE[:MIB])
                started.set()

    async with scripted(slow) as registry, talk(cached.gate, registry.endpoint) as resuming:
        target, rest = f"/v2/a/blobs/{digest}", f"Range: bytes={2 * MIB}-"
        alone = await resuming.ask("GET", target, rest)
        async with talk(cached.gate, registry.endpoint, AgentId("static:other")) as other:
            other.channel.send(f"GET {target} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
            await asyncio.wait_for(started.wait(), 10)
            beside = await resuming.ask("GET", target, rest)
            other.channel.gone = True
            cached.pulls.blobs._arriving[digest].content.fail()

    assert (alone.status, alone.body) == (206, LARGE[2 * MIB :])
    assert (beside.status, beside.body) == (206, LARGE[2 * MIB :])


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
async def test_a_head_with_another_length_is_not_the_head_of_what_is_in_memory(
    talk: "Talk", scripted: "Scripted", cached: CachedGate, kind: str
) -> None:
    """If the registry's answer to HEAD has another length than the content, GET is answered by the registry's GET."""
    content = b'{"schemaVersion": 2}'
    digest, said = digest_of(content), len(content)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            is_get = (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET")
            length = len(content) if is_get else said
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length, content if is_get else b""))

    async with scripted(script) as registry, talk(cached.gate, registry.endpoint) as agent:
        target = f"/v2/a/{kind}/{digest}"
        await agent.ask("GET", target)
        cached.now, said = 1000.0, 7
        await agent.ask("HEAD", target)
        answer = await agent.ask("GET", target)

    assert cached.pulls.small.find(digest) == content
    assert (answer.headers["content-length"], answer.body) == (str(len(content)), content)


async def test_a_disk_that_fails_within_a_download_costs_no_pull(
    talk: "Talk", registry: "Registry", cached: CachedGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a write fails, the reader gets the rest from the registry."""
    digest, write, written = registry.push_blob("team/app", LARGE), os.write, 0

    def failing(fd: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > MIB:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr("tunnelmgr.cache.download.os.write", failing)
    async with talk(cached.gate, registry.endpoint) as agent:
        answer = await agent.ask("GET", f"/v2/team/app/blobs/{digest}")

    assert answer.body == LARGE
    await until(lambda: cached.files() == [])


async def test_a_download_ends_with_its_last_reader(talk: "Talk", scripted: "Scripted", cached: CachedGate) -> None:
    """If the only reader leaves, the download stops, and its file is removed."""
    digest, gone, left = digest_of(LARGE), asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE)
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"HEAD"):
            writer.write(head)
            await reader.readuntil(b"\r\n\r\n")
        writer.write(head + LARGE[:MIB])
        await asyncio.wait_for(gone.wait(), 10)
        writer.write(LARGE[MIB : 2 * MIB])
        await asyncio.wait_for(left.wait(), 10)
        writer.write(LARGE[2 * MIB :])

    async with scripted(slow) as registry:
        async with talk(cached.gate, registry.endpoint) as agent:
            agent.channel.send(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
            await until(lambda: len(agent.channel.outgoing) >= MIB)
            agent.channel.gone = True
            gone.set()
            await agent.finished()
        left.set()
        await until(lambda: cached.files() == [])


async def test_one_agent_begins_few_downloads(talk: "Talk", registry: "Registry", cached: CachedGate) -> None:
    """Beyond its limit, an agent's pulls go to the registry, while another agent's blob is cached."""
    # As if these downloads were in progress.
    cached.pulls.blobs._started["static:builder-1"] = MAX_DOWNLOADS_OF_ONE
    digest = registry.push_blob("team/app", LARGE)
    target = f"/v2/team/app/blobs/{digest}"

    async with talk(cached.gate, registry.endpoint) as agent:
        assert (await agent.ask("GET", target)).body == LARGE
    assert cached.files() == []
    async with talk(cached.gate, registry.endpoint, AgentId("static:other")) as agent:
        assert (await agent.ask("GET", target)).body == LARGE
        await cached.stored(digest)


def refusing_ranges(content: bytes) -> "Script":
    """Script a registry that breaks each whole GET off, and ignores ranges."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
            if head.startswith(b"GET"):
                writer.write(content[:MIB])
                await writer.drain()
                return

    return script


async def test_a_rest_that_the_registry_does_not_give_ends_the_channel(
    talk: "Talk", scripted: "Scripted", cached: CachedGate
) -> None:
    """If the download breaks off and the registry ignores the range, the client sees an incomplete response."""
    digest = digest_of(LARGE)

    async with scripted(refusing_ranges(LARGE)) as registry, talk(cached.gate, registry.endpoint) as agent:
        agent.channel.send(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
        await agent.finished()
        received = bytes(agent.channel.outgoing).partition(b"\r\n\r\n")[2]

    assert received == LARGE[: len(received)]
    assert len(received) < len(LARGE)


@pytest.mark.parametrize("target", ["blobs", "manifests"])
async def test_an_agent_that_does_not_read_ends_the_channel(
    talk: "Talk", scripted: "Scripted", tmp_path: Path, target: str
) -> None:
    """If an agent takes nothing of a cached content within the timeout, the channel ends."""
    digest, slow = digest_of(LARGE), CachedGate(tmp_path, timeout=0.05)
    content = LARGE if target == "blobs" else b"{}"

    async with scripted(serving(content, digest)) as registry, talk(slow.gate, registry.endpoint) as agent:
        agent.channel.stalled = True
        agent.channel.send(f"GET /v2/a/{target}/{digest} HTTP/1.1\r\nHost: localhost:5000\r\n\r\n".encode())
        await agent.finished()

    assert bytes(agent.channel.outgoing) == b""


@pytest.mark.parametrize("body", [b"small", b"other", b"longer than the registry said"])
async def test_a_small_blob_that_is_not_what_it_should_be_is_the_registrys(
    talk: "Talk", scripted: "Scripted", cached: CachedGate, body: bytes
) -> None:
    """A small blob with another digest or length is not kept; the registry's own answer reaches the agent."""
    digest = digest_of(b"small")

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 5 if head.startswith(b"HEAD") else len(body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            if head.startswith(b"GET"):
                writer.write(body)

    async with scripted(script) as registry, talk(cached.gate, registry.endpoint) as agent:
        answers = [await agent.ask("GET", f"/v2/a/blobs/{digest}") for _ in "12"]

    assert [answer.body for answer in answers] == [body, body]
    assert cached.pulls.small.octets == (5 if body == b"small" else 0)


async def test_a_large_manifest_by_digest_is_streamed(talk: "Talk", scripted: "Scripted", cached: CachedGate) -> None:
    """A manifest that does not fit in memory is the registry's answer."""
    digest = digest_of(LARGE)

    async with scripted(serving(LARGE, digest)) as registry, talk(cached.gate, registry.endpoint) as agent:
        answer = await agent.ask("GET", f"/v2/a/manifests/{digest}")

    assert answer.body == LARGE
    assert cached.pulls.counts.bypassed == 1


async def test_a_registry_that_names_no_length_is_not_cached(
    talk: "Talk", scripted: "Scripted", cached: CachedGate
) -> None:
    """A blob whose length the registry does not say is the registry's answer."""
    digest = digest_of(b"unknown")

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            if head.startswith(b"GET"):
                writer.write(b"7\r\nunknown\r\n0\r\n\r\n")

    async with scripted(script) as registry, talk(cached.gate, registry.endpoint) as agent:
        answer = await agent.ask("GET", f"/v2/a/blobs/{digest}")

    assert answer.body == b"unknown"
