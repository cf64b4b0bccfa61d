"""A real registry with secrets and a gate in front of it, for the differential tests."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.differential.grammar import MANIFEST, RegistryContents
from tests.differential.oracle import (
    DELETE,
    DENY,
    IMMUTABLE,
    PULL,
    PUSH,
    Forbidden,
    LoggedRequest,
    parse_log,
)
from tests.gate.conftest import CALLER
from tests.gate.docker_registry import Registry, digest_of, running_registry
from tests.gate.memory_channel import MemoryChannel
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Forward
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.gate.uploads import Upload

DEADLINE = 20.0
HOST = b"Host: localhost:5000\r\n"
POLICY = GroupPolicy.build(
    "ci", pull=(PULL,), push=(PUSH,), delete=(DELETE,), deny=(DENY,), immutable_tags=(IMMUTABLE,)
)


@dataclass
class Subject:
    """A registry with secrets, a gate in front of it, and what an agent may know of them."""

    registry: Registry
    access_log: Path
    gate: Gate
    contents: RegistryContents
    forbidden: Forbidden
    secrets: tuple[bytes, ...]

    async def send(self, raw: bytes, agent: AgentId = CALLER.agent) -> bytes:
        """Send bytes on a new channel; returns the whole output."""
        channel = MemoryChannel()
        channel.send(raw)
        channel.end()
        async with asyncio.timeout(DEADLINE):
            caller = replace(CALLER, agent=agent)
            await self.gate.serve(channel, caller, Forward("registry", (), self.registry.endpoint), Traffic())
        return bytes(channel.outgoing)

    async def begin(self, agent: AgentId = CALLER.agent) -> str:
        """Start an upload through the gate; returns its location."""
        started = await self.send(b"POST /v2/open/own/app/blobs/uploads/ HTTP/1.1\r\n" + HOST + b"\r\n", agent)
        return started.partition(b"Location: http://localhost:5000")[2].partition(b"\r\n")[0].decode()

    def leaks(self, got: bytes) -> bool:
        """Return whether an output contains what the agent must not know."""
        return any(secret in got for secret in self.secrets)

    def log_since(self, offset: int) -> list[LoggedRequest]:
        """Return what the registry has served since the log had this size."""
        with self.access_log.open() as log:
            log.seek(offset)
            return parse_log(log.read())


def upload_id(location: str) -> str:
    """Return the id in an upload's location."""
    return location.partition("?")[0].rpartition("/")[2]


def push_marked(registry: Registry, repository: str, mark: bytes) -> list[str]:
    """Push an image whose layer and manifest contain a mark; returns the digests of all its parts."""
    manifest = json.loads(registry.manifest(repository, b"layer " + mark)) | {"annotations": {"mark": mark.decode()}}
    raw = json.dumps(manifest).encode()
    assert registry.ask("PUT", f"/v2/{repository}/manifests/v1", raw, MANIFEST)[0] == 201
    return [digest_of(raw), manifest["layers"][0]["digest"]]


def push_untagged(registry: Registry) -> str:
    """Push an image to open/own/app by digest only, which may be deleted; returns its digest."""
    manifest = registry.manifest("open/own/app", b"untagged")
    assert registry.ask("PUT", f"/v2/open/own/app/manifests/{digest_of(manifest)}", manifest, MANIFEST)[0] == 201
    return digest_of(manifest)


def new_marks() -> tuple[bytes, ...]:
    """Return what only the secret repositories contain."""
    return tuple(secrets.token_hex(16).encode() for _ in range(3))


@contextmanager
def running_subject(folder: Path, gate: Gate, marks: tuple[bytes, ...]) -> Iterator[Subject]:
    """Run a registry with repositories that are open to all, open to push, denied, and not granted."""
    with running_registry(folder) as registry:
        seen = [
            digest for name in ("open/app", "open/own/app", "open/a/b") for digest in push_marked(registry, name, b"x")
        ]
        unseen = push_marked(registry, "open/secret/app", marks[0]) + push_marked(registry, "hidden/app", marks[1])
        registry.push_blob(f"hidden/{marks[2].decode()}", b"unguessable")
        started = registry.ask("POST", "/v2/open/own/app/blobs/uploads/")[1]["location"].partition(
            str(registry.endpoint)
        )[2]
        release = registry.ask("HEAD", "/v2/open/own/app/manifests/v1")[1]["docker-content-digest"]
        contents = RegistryContents(
            [*seen, push_untagged(registry)], unseen, registry.manifest("open/own/app", b"pushed")
        )
        subject = Subject(registry, folder / "access.log", gate, contents, Forbidden(frozenset(), release), marks)
        other_agent = AgentId("static:other")
        other = asyncio.run(subject.begin(other_agent))
        upload = Upload(other_agent, CALLER.incarnation, registry.endpoint, "open/own/app", upload_id(other))
        place = gate.context.uploads.location(upload, other.partition("?state=")[2])
        assert place is not None
        direct = f"/v2/open/own/app/blobs/uploads/{upload_id(started)}"
        contents.foreign_uploads = (
            other,
            started,
            direct,
            f"{direct}?state=open",
            f"{place.path}?{place.query}",
            place.path,
        )
        subject.forbidden = Forbidden(frozenset({upload_id(started), upload_id(place.path)}), release)
        yield subject
