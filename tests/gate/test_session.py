"""The gate in front of a real docker-registry: allowed requests work, and no request has two meanings."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.gate.conftest import Records
from tests.gate.docker_registry import digest_of
from tunnelmgr.gate.gate import Gate

if TYPE_CHECKING:
    from tests.gate.conftest import Conversation, Reply, Talk
    from tests.gate.docker_registry import Registry


ACCEPT = "Accept: application/vnd.docker.distribution.manifest.v2+json"
KIND = "Content-Type: application/vnd.docker.distribution.manifest.v2+json"
HOST = b"Host: localhost:5000\r\n"

Grants = Callable[..., Gate]


def path_of(reply: "Reply") -> str:
    """Return the path of a response's Location, as the agent uses it."""
    host, _, path = reply.headers["location"].removeprefix("http://").partition("/")
    assert host == "localhost:5000"
    return f"/{path}"


async def push_blob(agent: "Conversation", repository: str, content: bytes) -> "Reply":
    """Push as docker does: begin, one chunked PATCH, then close by digest."""
    started = await agent.ask("POST", f"/v2/{repository}/blobs/uploads/")
    assert started.status == 202
    middle = len(content) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:middle], content[middle:]))
    agent.channel.send(
        f"PATCH {path_of(started)} HTTP/1.1\r\n".encode() + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    )
    agent.channel.send(b"0\r\n\r\n")
    patched = await agent.answer("PATCH")
    assert patched.status == 202
    return await agent.ask("PUT", f"{path_of(patched)}&digest={digest_of(content)}")


async def test_a_pull_gets_the_registrys_bytes(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """A manifest and a blob arrive whole, by the registry's own digests."""
    _, known, manifest = registry.ask("GET", "/v2/team/app/manifests/v1")
    layer = digest_of(b"layer of team/app")

    async with talk(gate_for(), registry.endpoint) as agent:
        pulled = await agent.ask("GET", "/v2/team/app/manifests/v1", ACCEPT)
        blob = await agent.ask("GET", f"/v2/team/app/blobs/{layer.replace(':', '%3A')}")
        part = await agent.ask("GET", f"/v2/team/app/blobs/{layer}", "Range: bytes=0-4")
        asked = await agent.ask("HEAD", f"/v2/team/app/blobs/{layer}")

    assert pulled.body == manifest
    assert pulled.headers["docker-content-digest"] == known["docker-content-digest"]
    assert blob.body == b"layer of team/app"
    assert (part.status, part.body) == (206, b"layer")
    assert (asked.status, asked.headers["content-length"], asked.body) == (200, "17", b"")


async def test_a_push_and_a_delete_succeed(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """A chunked upload, a manifest, its tags and a delete succeed on one channel."""
    gate = gate_for(push=("work/**",), delete=("work/**",))
    content = bytes(range(256)) * 4096

    async with talk(gate, registry.endpoint) as agent:
        assert (await push_blob(agent, "work/app", content)).status == 201
        assert (await push_blob(agent, "work/app", b"{}")).status == 201
        manifest = registry.manifest("work/app", content)
        pushed = await agent.ask("PUT", "/v2/work/app/manifests/v2", KIND, body=manifest)
        blob = await agent.ask("GET", f"/v2/work/app/blobs/{digest_of(content)}")
        tags = await agent.ask("GET", "/v2/work/app/tags/list?n=5")
        deleted = await agent.ask("DELETE", f"/v2/work/app/manifests/{pushed.headers['docker-content-digest']}")

    assert pushed.status == 201
    assert path_of(pushed).startswith("/v2/work/app/manifests/sha256:")
    assert blob.body == content
    assert json.loads(tags.body) == {"name": "work/app", "tags": ["v2"]}
    assert deleted.status == 202


async def test_a_large_counted_upload_and_its_download_are_whole(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A large counted upload and its download arrive whole, in writes of bounded size."""
    content = bytes(range(256)) * 65536

    async with talk(gate_for(push=("**",)), registry.endpoint) as agent:
        started = await agent.ask("POST", "/v2/work/big/blobs/uploads/")
        target = f"{path_of(started)}&digest={digest_of(content)}"
        agent.channel.send(f"PUT {target} HTTP/1.1\r\nContent-Length: {len(content)}\r\n".encode() + HOST + b"\r\n")
        for start in range(0, len(content), 262144):
            agent.channel.send(content[start : start + 262144])
        put = await agent.answer("PUT")
        got = await agent.ask("GET", f"/v2/work/big/blobs/{digest_of(content)}")

    assert put.status == 201
    assert got.body == content
    assert agent.channel.largest_write <= 256 * 1024
    assert agent.traffic.to_agent > len(content)
    assert agent.traffic.from_agent > len(content)


async def test_a_refused_push_gets_403_and_the_channel_continues(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A refused push gets 403 with the policy's message, which docker prints, and the channel continues."""
    async with talk(gate_for(), registry.endpoint) as agent:
        refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/")
        after = await agent.ask("GET", "/v2/")

    assert (refused.status, refused.code) == (403, "DENIED")
    assert refused.message == (
        "tunnelmgr: group ci may not push team/app: no rule grants it (default); ask the registry's administrator"
    )
    assert refused.headers["docker-distribution-api-version"] == "registry/2.0"
    assert after.status == 200


async def test_a_refused_head_has_no_body(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """The refusal of a HEAD request has no body (RFC 9110, section 9.3.2)."""
    async with talk(gate_for(deny=("secret/**",)), registry.endpoint) as agent:
        refused = await agent.ask("HEAD", "/v2/secret/app/manifests/v1")
        after = await agent.ask("GET", "/v2/")

    assert (refused.status, refused.body) == (403, b"")
    assert after.status == 200


async def test_a_refused_body_is_drained_and_the_channel_ends(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """After a refusal, the request's body is discarded, and the bytes after it are not served."""
    async with talk(gate_for(), registry.endpoint) as agent:
        refused = await agent.ask("PUT", "/v2/team/app/manifests/v1", KIND, body=b"GET /v2/ HTTP/1.1\r\n\r\n")
        agent.channel.end()
        await agent.finished()

    assert refused.status == 403
    assert refused.headers["connection"] == "close"
    assert agent.channel.ended
    assert not agent.channel.outgoing


async def test_at_most_a_megabyte_of_a_refused_body_is_read(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """The gate reads at most `MAX_DISCARDED` bytes of an endless refused body."""
    async with talk(gate_for(), registry.endpoint) as agent:
        agent.channel.send(b"PUT /v2/team/app/manifests/v1 HTTP/1.1\r\nContent-Length: 100000000\r\n" + HOST + b"\r\n")
        for _ in range(20):
            agent.channel.send(bytes(100_000))
        refused = await agent.answer("PUT")
        await agent.finished()

    assert refused.status == 403


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "Multipart/Form-Data; boundary=x"])
async def test_a_form_cannot_smuggle_a_mount(talk: "Talk", gate_for: Grants, registry: "Registry", kind: str) -> None:
    """A form body, whose fields override the registry's query, cannot mount a blob."""
    body = f"mount={digest_of(b'layer of secret/app')}&from=secret/app".encode()

    async with talk(gate_for(push=("team/**",), deny=("secret/**",)), registry.endpoint) as agent:
        refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/", f"Content-Type: {kind}", body=body)
        agent.channel.end()

    assert (refused.status, refused.code) == (415, "UNSUPPORTED")


ATTACKS = {
    "escaped letter": b"GET /v2/%73ecret/app/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "escaped slash": b"GET /v2/secret%2Fapp/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "dot segment": b"GET /v2/team/../secret/app/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "double slash": b"GET //v2/secret/app/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "greedy route": b"GET /v2/secret/tags/list/tags/list HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form": b"GET http://x/v2/secret/app/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "bare LF": b"GET /v2/secret/app/manifests/v1 HTTP/1.1\nHost: x\n\n",
    "TE and CL": b"PUT /v2/team/app/manifests/v1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n"
    + HOST
    + b"\r\n0\r\n\r\nGET /v2/secret/app/manifests/v1 HTTP/1.1\r\n\r\n",
    "body on GET": b"GET /v2/ HTTP/1.1\r\nContent-Length: 46\r\n"
    + HOST
    + b"\r\nGET /v2/secret/app/manifests/v1 HTTP/1.1\r\n\r\n",
    "broken chunk": b"PUT /v2/team/app/manifests/v1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"\r\nxyz\r\n",
}


@pytest.mark.parametrize("raw", ATTACKS.values(), ids=ATTACKS.keys())
async def test_an_ambiguous_request_gets_400_and_ends_the_channel(
    talk: "Talk", gate_for: Grants, registry: "Registry", raw: bytes
) -> None:
    """A request that the registry could accept in another interpretation gets one 400, and the channel ends."""
    records = Records()
    gate = Gate(replace(gate_for(push=("team/**",), deny=("secret", "secret/**")).context, requests=records))

    async with talk(gate, registry.endpoint) as agent:
        agent.channel.send(raw)
        refused = await agent.answer()
        agent.channel.end()
        await agent.finished()

    assert refused.status == 400
    assert refused.message.startswith("tunnelmgr: ")
    assert refused.headers["connection"] == "close"
    assert not agent.channel.outgoing
    assert [record.status for record in records.all] == [400]


async def test_pipelined_requests_are_each_judged(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """Pipelined requests are answered in order, each by its own verdict."""
    async with talk(gate_for(deny=("secret/**",)), registry.endpoint) as agent:
        agent.channel.send(
            b"GET /v2/team/app/tags/list HTTP/1.1\r\n"
            + HOST
            + b"\r\nGET /v2/secret/app/tags/list HTTP/1.1\r\n"
            + HOST
            + b"\r\n"
        )
        first, second = await agent.answer(), await agent.answer()

    assert (first.status, second.status) == (200, 403)


async def test_a_request_after_a_body_in_the_same_bytes_is_judged(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A request in the same bytes as the end of a body is decided like any other."""
    manifest = registry.manifest("work/tail", b"tail")
    put = f"PUT /v2/work/tail/manifests/v1 HTTP/1.1\r\n{KIND}\r\nContent-Length: {len(manifest)}\r\n".encode()

    async with talk(gate_for(push=("work/**",), deny=("secret/**",)), registry.endpoint) as agent:
        agent.channel.send(
            put + HOST + b"\r\n" + manifest + b"GET /v2/secret/app/tags/list HTTP/1.1\r\n" + HOST + b"\r\n"
        )
        first, second = await agent.answer("PUT"), await agent.answer()

    assert (first.status, second.status) == (201, 403)


async def test_forwarded_fields_do_not_change_a_location(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """X-Forwarded-Host and similar fields do not change the Location of an upload."""
    async with talk(gate_for(push=("**",)), registry.endpoint) as agent:
        started = await agent.ask(
            "POST", "/v2/work/app/blobs/uploads/", "X-Forwarded-Host: evil", "X-Forwarded-Proto: https"
        )

    assert started.headers["location"].startswith("http://localhost:5000/v2/work/app/blobs/uploads/")
    assert "_state" not in started.headers["location"]


async def test_reading_an_uploads_state_needs_push(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """Reading the state of an upload is refused to a group that may only pull."""
    async with talk(gate_for(push=("work/**",)), registry.endpoint) as agent:
        started = await agent.ask("POST", "/v2/work/app/blobs/uploads/")
        target = path_of(started)
        state = await agent.ask("GET", target)
        cancelled = await agent.ask("DELETE", path_of(state))
    async with talk(gate_for(), registry.endpoint) as agent:
        refused = [(await agent.ask(method, target)).status for method in ("GET", "HEAD", "PATCH", "PUT", "DELETE")]

    assert (state.status, cancelled.status) == (204, 204)
    assert refused == [403] * 5


async def test_a_mount_without_pull_of_its_source_becomes_an_upload(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A mount gets 201 if the group may pull the source, and becomes an ordinary upload with 202 otherwise."""
    mount = f"/v2/work/mounted/blobs/uploads/?mount={digest_of(b'layer of secret/app')}&from=secret/app"

    async with talk(gate_for(push=("work/**",), deny=("secret/**",)), registry.endpoint) as agent:
        dropped = await agent.ask("POST", mount)
    async with talk(gate_for(push=("work/**",)), registry.endpoint) as agent:
        mounted = await agent.ask("POST", mount)

    assert dropped.status == 202
    assert mounted.status == 201


async def test_100_continue_is_sent_only_after_the_verdict(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """A refused client gets no 100 Continue, so it does not send its body."""
    manifest = registry.manifest("work/expect", b"expect")
    head = f"{KIND}\r\nExpect: 100-continue\r\nContent-Length: {len(manifest)}\r\n".encode() + HOST + b"\r\n"

    async with talk(gate_for(push=("work/**",)), registry.endpoint) as agent:
        agent.channel.send(b"PUT /v2/work/expect/manifests/v1 HTTP/1.1\r\n" + head)
        async with agent.channel.changed, asyncio.timeout(10):
            await agent.channel.changed.wait_for(lambda: agent.channel.outgoing)
        agent.channel.send(manifest)
        pushed = await agent.answer("PUT")
        interim = list(agent.interim)
        agent.channel.send(b"PUT /v2/team/app/manifests/v1 HTTP/1.1\r\n" + head)
        refused = await agent.answer("PUT")
        agent.channel.end()

    assert (pushed.status, interim) == (201, [100])
    assert (refused.status, agent.interim) == (403, [100])


async def test_the_channel_closes_after_a_request_with_connection_close(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """After the response to a request with `Connection: close`, the channel closes."""
    async with talk(gate_for(), registry.endpoint) as agent:
        answered = await agent.ask("GET", "/v2/", "Connection: close")
        await agent.finished()

    assert answered.headers["connection"] == "close"


async def test_a_draining_tunnel_ends_an_idle_channel_at_once(
    talk: "Talk", gate_for: Grants, registry: "Registry"
) -> None:
    """When the tunnel drains, a channel that is idle after a served request ends at once."""
    async with talk(gate_for(), registry.endpoint) as agent:
        pulled = await agent.ask("GET", "/v2/team/app/manifests/v1", ACCEPT)
        agent.channel.draining.set()
        await agent.finished()

    assert pulled.status == 200
