"""Every endpoint of the API through the gate to a real registry, and requests that must not reach it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gate.docker_registry import MANIFEST_TYPE, digest_of, running_registry
from tests.gate.test_head_parser import MALFORMED
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.gate.gate import Gate

if TYPE_CHECKING:
    from tests.gate.conftest import Talk
    from tests.gate.docker_registry import Registry

Grants = Callable[..., Gate]
BLOB = digest_of(b"layer of api/app")
ACCEPT = f"Accept: {MANIFEST_TYPE}"
KIND = f"Content-Type: {MANIFEST_TYPE}"

# Name, method, target, header lines, body, status; {app} is api/app, {up} the location of the last upload.
# The numbers are those of the OCI distribution spec's table of endpoints.
ENDPOINTS = [
    ("end-1", "GET", "/v2/", (), b"", 200),
    ("end-1 by HEAD", "HEAD", "/v2/", (), b"", 200),
    ("end-2", "GET", "{app}/blobs/{blob}", (), b"", 200),
    ("end-2 by HEAD", "HEAD", "{app}/blobs/{blob}", (), b"", 200),
    ("end-2 in part", "GET", "{app}/blobs/{blob}", ("Range: bytes=0-4",), b"", 206),
    ("end-2 in part by HEAD", "HEAD", "{app}/blobs/{blob}", ("Range: bytes=0-4",), b"", 206),
    ("end-2 that is known", "GET", "{app}/blobs/{blob}", ('If-None-Match: "{blob}"',), b"", 304),
    ("end-3", "GET", "{app}/manifests/v1", (ACCEPT,), b"", 200),
    ("end-3 by HEAD", "HEAD", "{app}/manifests/v1", (ACCEPT,), b"", 200),
    ("end-3 that is missing", "GET", "{app}/manifests/nothing", (ACCEPT,), b"", 404),
    ("end-4a", "POST", "{app}/blobs/uploads/", (), b"", 202),
    ("end-5", "PATCH", "{up}", ("Content-Range: 0-2",), b"abc", 202),
    ("end-13", "GET", "{up}", (), b"", 204),
    ("end-13 by HEAD", "HEAD", "{up}", (), b"", 204),
    ("end-6", "PUT", "{up}&digest={abc}", (), b"", 201),
    ("end-4a with an algorithm", "POST", "{app}/blobs/uploads/?digest-algorithm=sha512", (), b"", 202),
    ("end-14", "DELETE", "{up}", (), b"", 204),
    ("end-4b, which this registry takes for end-4a", "POST", "{app}/blobs/uploads/?digest={abc}", (), b"abc", 202),
    ("end-6 in one piece", "PUT", "{up}&digest={abc}", (), b"abc", 201),
    ("end-11", "POST", "/v2/api/other/blobs/uploads/?mount={blob}&from=api/app", (), b"", 201),
    ("end-7", "PUT", "{app}/manifests/v2", (KIND,), b"MANIFEST", 201),
    ("end-8a", "GET", "{app}/tags/list", (), b"", 200),
    ("end-8b", "GET", "{app}/tags/list?n=1&last=v1", (), b"", 200),
    ("end-12a, which this registry lacks", "GET", "{app}/referrers/{blob}", (), b"", 404),
    ("end-12b, which this registry lacks", "GET", "{app}/referrers/{blob}?artifactType=a/b", (), b"", 404),
    ("the catalog", "GET", "/v2/_catalog?n=5", (), b"", 200),
    ("an empty form", "POST", "{app}/blobs/uploads/", ("Content-Type: application/x-www-form-urlencoded",), b"", 202),
    ("end-9 by tag, which this registry lacks", "DELETE", "{app}/manifests/v2", (), b"", 400),
    ("end-9", "DELETE", "{app}/manifests/{manifest}", (), b"", 202),
    ("end-10", "DELETE", "{app}/blobs/{abc}", (), b"", 202),
    ("the base without its slash, which no client requests", "GET", "/v2", (), b"", 403),
]


async def test_every_endpoint_works_through_the_gate(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """Each endpoint of the API, called on one channel, gets the status that the registry itself gives."""
    digest = registry.push_image("api/app", "v1", b"layer of api/app")
    manifest = registry.manifest("api/app", b"another layer")
    gate = gate_for(push=("api/**",), delete=("api/**",))
    known = {"app": "/v2/api/app", "blob": BLOB, "abc": digest_of(b"abc"), "manifest": digest, "up": ""}
    seen = []

    async with talk(gate, registry.endpoint) as agent:
        for name, method, target, lines, body, _ in ENDPOINTS:
            filled = [line.format(**known) for line in lines]
            sent = body if body != b"MANIFEST" else manifest
            answer = await agent.ask(method, target.format(**known), *filled, body=sent)
            seen.append((name, answer.status))
            if "/blobs/uploads/" in answer.headers.get("location", ""):
                known["up"] = answer.headers["location"].removeprefix("http://localhost:5000")

    assert seen == [(name, status) for name, *_, status in ENDPOINTS]


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_an_ambiguous_request_is_answered_400_and_nothing_of_it_reaches_the_registry(
    talk: "Talk", gate_for: Grants, registry: "Registry", raw: bytes
) -> None:
    """An ambiguous request gets 400 under any policy, closes the channel, and the bytes after it are not read."""
    before = registry.access_log()

    async with talk(gate_for(push=("**",), delete=("**",)), registry.endpoint) as agent:
        agent.channel.send(raw + b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n")
        refused = await agent.answer()
        agent.channel.end()
        await agent.finished()

    assert refused.status == 400
    assert refused.headers["connection"] == "close"
    assert not agent.channel.outgoing
    assert registry.access_log() == before


STRIPPED = (
    *("Authorization: Basic eDp5", "Cookie: a=b", "Forwarded: host=evil", "X-Forwarded-Host: evil", "Via: 1.1 x"),
    *("X-Forwarded-Proto: https", "X-Forwarded-For: 1.2.3.4", "X-HTTP-Method-Override: DELETE", "X-Real-IP: 1.2.3.4"),
    *("X-Original-URL: /v2/secret/app/tags/list", "X-Rewrite-URL: /v2/secret/app/tags/list", "Connection: range"),
)


@pytest.mark.parametrize("line", STRIPPED)
async def test_header_fields_that_could_change_the_meaning_change_nothing(
    talk: "Talk", gate_for: Grants, registry: "Registry", line: str
) -> None:
    """With a header field that could change a request's meaning, the registry responds as it does without it."""
    async with talk(gate_for(push=("work/**",)), registry.endpoint) as agent:
        started = await agent.ask("POST", "/v2/work/app/blobs/uploads/", line)
        listed = await agent.ask("GET", "/v2/team/app/tags/list", line)

    assert started.headers["location"].startswith("http://localhost:5000/v2/work/app/blobs/uploads/")
    assert json.loads(listed.body) == {"name": "team/app", "tags": ["v1"]}


async def test_a_read_only_registrys_405_becomes_an_oci_error(talk: "Talk", gate_for: Grants, tmp_path: Path) -> None:
    """The plain-text 405 of a read-only docker-registry, which docker cannot parse, becomes an OCI error."""
    with running_registry(tmp_path) as writable:
        writable.push_image("team/app", "v1", b"layer")
    with running_registry(tmp_path, read_only=True) as registry:
        direct = registry.ask("POST", "/v2/team/app/blobs/uploads/")
        async with talk(gate_for(push=("**",)), registry.endpoint) as agent:
            refused = await agent.ask("POST", "/v2/team/app/blobs/uploads/")
            read = await agent.ask("GET", "/v2/team/app/tags/list")

    assert (direct[0], direct[2]) == (405, b"Method not allowed\n")
    assert (refused.status, refused.code, read.status) == (405, "UNSUPPORTED", 200)
    assert refused.message == (
        f"tunnelmgr: the registry at {registry.endpoint} does not allow POST here: it is a read-only replica or under "
        "maintenance (storage.maintenance.readonly), or lacks this operation"
    )


async def test_an_oci_error_of_the_registry_is_forwarded(talk: "Talk", gate_for: Grants, tmp_path: Path) -> None:
    """A 405 with the registry's own OCI error, or to a HEAD request, is forwarded unchanged."""
    with running_registry(tmp_path, deletes=False) as registry:
        digest = registry.push_image("team/app", "v1", b"layer")
        async with talk(gate_for(delete=("**",)), registry.endpoint) as agent:
            refused = await agent.ask("DELETE", f"/v2/team/app/manifests/{digest}")

    assert (refused.status, refused.code) == (405, "UNSUPPORTED")
    assert not refused.message.startswith("tunnelmgr")


async def test_the_parameter_ns_of_a_mirror_is_accepted(talk: "Talk", gate_for: Grants, registry: "Registry") -> None:
    """Requests for manifests and blobs may have the parameter `ns`, as containerd sends it to a mirror."""
    before = len(registry.access_log())

    async with talk(gate_for(), registry.endpoint) as agent:
        replies = [
            await agent.ask(method, f"/v2/team/app/{target}?ns=docker.io", ACCEPT)
            for method in ("HEAD", "GET")
            for target in ("manifests/v1", f"blobs/{digest_of(b'layer of team/app')}")
        ]

    assert [reply.status for reply in replies] == [200] * 4
    assert "ns=" not in registry.access_log()[before:]


async def test_the_refusal_of_a_query_names_the_parameter(talk: "Talk", gate_for: Grants) -> None:
    """A request with an unknown query parameter gets an error that names the parameter."""
    async with talk(gate_for(), Endpoint("127.0.0.1", 1)) as agent:
        refused = await agent.ask("GET", "/v2/team/app/tags/list?n=many")
        agent.channel.end()
    async with talk(gate_for(), Endpoint("127.0.0.1", 1)) as agent:
        named = await agent.ask("GET", "/v2/Team/app/tags/list")
        agent.channel.end()

    assert (refused.status, refused.code) == (400, "UNSUPPORTED")
    assert refused.message == "tunnelmgr: invalid value for the query parameter n: 'many'"
    assert (named.status, named.code) == (400, "NAME_INVALID")
