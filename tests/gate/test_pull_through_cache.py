"""Forwards to a pull-through cache: the real docker-registry in proxy mode, behind the gate."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from lab.gate_stand_ins import gate_with
from tests.gate.cached_gate import LARGE, CachedGate, gets
from tests.gate.conftest import Records
from tests.gate.docker_registry import MANIFEST_TYPE, Registry, digest_of, running_registry
from tests.until import until
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy, PullThrough
from tunnelmgr.core.tunnel import Forward
from tunnelmgr.gate.gate import Gate

if TYPE_CHECKING:
    from tests.gate.conftest import Talk

ACCEPT = f"Accept: {MANIFEST_TYPE}"
LAYER = b"a layer of an image on the hub"
UNKNOWN = f"/v2/library/new/manifests/{digest_of(b'unknown')}"


@dataclass(frozen=True)
class Mirror:
    """A registry, the cache of it, and the digest of library/alpine:3.20 in it."""

    hub: Registry
    cache: Registry
    digest: str

    @property
    def forward(self) -> Forward:
        """The forward that leads to the cache."""
        return Forward("hub", (), self.cache.endpoint, upstream="proxy", namespace="docker.io")

    def has(self, digest: str) -> bool:
        """Return whether the cache has stored a blob; it does so beside serving it."""
        hexadecimal = digest.removeprefix("sha256:")
        return any(self.cache.folder.glob(f"content/**/blobs/sha256/*/{hexadecimal}/data"))


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """Run a registry with the image library/alpine:3.20, and a cache of it that is empty."""
    for name in ("hub", "cache"):
        (tmp_path / name).mkdir()
    with running_registry(tmp_path / "hub") as hub:
        digest = hub.push_image("library/alpine", "3.20", LAYER)
        with running_registry(tmp_path / "cache", cache_of=f"http://{hub.endpoint}") as cache:
            yield Mirror(hub, cache, digest)


@pytest.fixture
def gate() -> Gate:
    """Return a gate whose one group may do everything that the registry behind it can do, but not pull secret/**."""
    rules = {"pull": ("**",), "push": ("**",), "delete": ("**",), "deny": ("secret/**",), "immutable_tags": ("*",)}
    return gate_with(
        GroupPolicy.build("ci", **rules, pull_through=PullThrough("mirror", "localhost:5000", "docker.io"))
    )


async def test_a_pull_gets_what_the_hub_has_and_the_cache_keeps_it(talk: "Talk", gate: Gate, mirror: Mirror) -> None:
    """The manifest and the layer arrive as the hub has them, the catalog is the cache's own, and `ns` is removed."""
    blob = f"/v2/library/alpine/blobs/{digest_of(LAYER)}"
    async with talk(gate, mirror.forward) as agent:
        asked = await agent.ask("HEAD", "/v2/library/alpine/manifests/3.20?ns=docker.io", ACCEPT)
        first = await agent.ask("GET", f"/v2/library/alpine/manifests/{mirror.digest}?ns=docker.io", ACCEPT)
        layer = await agent.ask("GET", f"{blob}?ns=docker.io")
        await until(lambda: mirror.has(digest_of(LAYER)))
        again = await agent.ask("GET", blob)
        listed = await agent.ask("GET", "/v2/_catalog")

    assert (asked.status, asked.headers["docker-content-digest"]) == (200, mirror.digest)
    assert digest_of(first.body) == mirror.digest
    assert (layer.body, again.body) == (LAYER, LAYER)
    assert json.loads(listed.body) == {"repositories": ["library/alpine"]}
    assert "ns=" not in mirror.cache.access_log()


async def test_no_push_reaches_the_cache(talk: "Talk", gate: Gate, mirror: Mirror) -> None:
    """Uploads, manifests and deletes are refused with where to push; no protected tag is looked up for them."""
    records = Records()
    recorded = Gate(replace(gate.context, requests=records))
    manifest = mirror.hub.manifest("library/alpine", b"another layer")
    before = mirror.cache.access_log()
    kind = f"Content-Type: {MANIFEST_TYPE}"
    async with talk(recorded, mirror.forward) as agent:
        upload = await agent.ask("POST", "/v2/team/app/blobs/uploads/")
        delete = await agent.ask("DELETE", f"/v2/library/alpine/manifests/{mirror.digest}")
    async with talk(recorded, mirror.forward) as agent:
        push = await agent.ask("PUT", "/v2/library/alpine/manifests/3.20", kind, body=manifest)

    assert [(reply.status, reply.code) for reply in (upload, delete, push)] == [(405, "UNSUPPORTED")] * 3
    assert upload.message == (
        "tunnelmgr: forward mirror leads to a pull-through cache, which takes no push of team/app; "
        "use localhost:5000 for that"
    )
    assert mirror.cache.access_log() == before
    assert {(record.verdict, record.rule, record.error) for record in records.all} == {
        ("refused", "upstream proxy", "")
    }


async def test_an_image_of_another_registry_is_refused(talk: "Talk", gate: Gate, mirror: Mirror) -> None:
    """A client that expects the image of quay.io does not get the one of the same name from the cache."""
    async with talk(gate, mirror.forward) as agent:
        refused = await agent.ask("GET", "/v2/library/alpine/manifests/3.20?ns=quay.io", ACCEPT)
        served = await agent.ask("GET", "/v2/library/alpine/manifests/3.20?ns=docker.io", ACCEPT)

    assert (refused.status, refused.code, served.status) == (403, "DENIED", 200)
    assert "has images of docker.io, not quay.io/library/alpine" in refused.message


async def test_the_groups_rules_hold_at_a_cache(talk: "Talk", gate: Gate, mirror: Mirror) -> None:
    """A denied repository is refused with and without `ns`, and the hub is not asked for it."""
    mirror.hub.push_image("secret/app", "1", b"secret layer")
    async with talk(gate, mirror.forward) as agent:
        refused = [await agent.ask("GET", f"/v2/secret/app/manifests/1{ns}") for ns in ("", "?ns=docker.io")]

    assert [(reply.status, reply.code) for reply in refused] == [(403, "DENIED")] * 2
    assert "GET /v2/secret/app/manifests" not in mirror.hub.access_log()


async def test_agents_that_start_together_get_a_new_layer_by_one_request_with_the_controllers_cache(
    talk: "Talk", mirror: Mirror, tmp_path: Path
) -> None:
    """Without it, docker-registry would fetch the layer from the hub for each agent, and once more to store it."""
    mirror.hub.push_image("library/big", "1", LARGE)
    blob = f"/v2/library/big/blobs/{digest_of(LARGE)}"
    cached = CachedGate(tmp_path / "controller")

    async def pull(number: int) -> bytes:
        async with talk(cached.gate, mirror.forward, AgentId(f"static:builder-{number}")) as agent:
            return (await agent.ask("GET", blob)).body

    bodies = await asyncio.gather(*(pull(number) for number in range(6)))

    assert bodies == [LARGE] * 6
    await until(lambda: gets(mirror.cache, blob) > 0)  # it is logged when it has ended
    assert gets(mirror.cache, blob) == 1


@dataclass(frozen=True)
class PolicyByForward:
    """A policy source whose one group has other rules at each forward."""

    policies: dict[str, GroupPolicy]

    def policy_of(self, _: AgentId, forward: str) -> GroupPolicy:
        """Return the policy at a forward."""
        return self.policies[forward]


async def test_the_rules_of_the_channels_own_forward_decide(talk: "Talk", gate: Gate, mirror: Mirror) -> None:
    """An agent that may pull an image through the one forward does not get it through the other."""
    policies = {"hub": GroupPolicy.build("ci"), "registry": GroupPolicy.build("ci", pull=())}
    records = Records()
    both = Gate(replace(gate.context, policies=PolicyByForward(policies), requests=records))
    for forward in (mirror.forward, Forward("registry", (), mirror.hub.endpoint)):
        async with talk(both, forward) as agent:
            await agent.ask("GET", "/v2/library/alpine/manifests/3.20", ACCEPT)

    assert [(record.caller.forward, record.status) for record in records.all] == [("hub", 200), ("registry", 403)]


class Hub(BaseHTTPRequestHandler):
    """Docker Hub as it answers a client that has used up its limit, or whose credential is wrong."""

    protocol_version = "HTTP/1.1"
    code, status = "TOOMANYREQUESTS", 429

    def do_GET(self) -> None:
        """Answer every request but the first one of a cache with an error."""
        error = {"errors": [{"code": self.code, "message": f"the hub says {self.code}"}]}
        body = b"{}" if self.path == "/v2/" else json.dumps(error).encode()
        self.send_response(200 if self.path == "/v2/" else self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_HEAD = do_GET  # noqa: N815 - the name that the base class calls

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class WrongCredential(Hub):
    """Docker Hub for a client whose credential is wrong."""

    code, status = "UNAUTHORIZED", 401


@pytest.mark.parametrize("kind", [Hub, WrongCredential])
async def test_what_the_hub_refuses_reaches_the_client_with_the_hubs_words(
    talk: "Talk", gate: Gate, tmp_path: Path, kind: type[Hub]
) -> None:
    """A cache answers 500 and quotes the hub, or 404 for a tag that it does not have; the gate passes both on."""
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as hub:
        serving = Thread(target=hub.serve_forever, args=(0.05,), name="hub")
        serving.start()
        try:
            with running_registry(tmp_path, cache_of=f"http://127.0.0.1:{hub.server_port}") as cache:
                async with talk(gate, Forward("registry", (), cache.endpoint, upstream="proxy")) as agent:
                    by_digest = await agent.ask("GET", UNKNOWN, ACCEPT)
                    by_tag = await agent.ask("GET", "/v2/library/new/manifests/1", ACCEPT)
        finally:
            hub.shutdown()
            serving.join()

    assert (by_digest.status, by_digest.code) == (500, "UNKNOWN")
    assert f"the hub says {kind.code}" in by_digest.body.decode()
    assert (by_tag.status, by_tag.code) == (404, "MANIFEST_UNKNOWN")
