"""Differential test: no request through the gate makes the real registry do anything outside of the policy.

    CASES=100000 SEED=7 python -m pytest tests/differential -s

A case that once failed becomes one of REGRESSIONS, under a name that describes it.
"""

import asyncio
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lab.gate_stand_ins import gate_with
from tests.differential.grammar import MANIFEST, RegistryContents, make_case
from tests.differential.oracle import (
    DELETE,
    DENY,
    IMMUTABLE,
    PULL,
    PUSH,
    Forbidden,
    LoggedRequest,
    parse_log,
    violation,
)
from tests.gate.conftest import CALLER
from tests.gate.docker_registry import Registry, digest_of, running_registry
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.core.tunnel import Forward
from tunnelmgr.dataplane.fair_queue import Share, fair_queue
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.gate.uploads import Upload

CASES = int(os.environ.get("CASES", "3000"))
SEED = os.environ.get("SEED", "0")
PARALLEL_CHANNELS = 8
DEADLINE = 20.0
OWN_UPLOADS = 4

HOST = b"Host: localhost:5000\r\n"
HIDDEN = b"/v2/hidden/app/manifests/v1"

REGRESSIONS = {
    "escaped letter": b"GET /v2/%68idden/app/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "escaped slash": b"GET /v2/hidden%2Fapp/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "dot segments": b"GET /v2/open/../hidden/app/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "greedy route": b"GET /v2/open/secret/app/tags/list/tags/list HTTP/1.1\r\n" + HOST + b"\r\n",
    "absolute form": b"GET http://localhost:5000" + HIDDEN + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "bare LF": b"GET /v2/ HTTP/1.1\n" + HOST + b"\nGET " + HIDDEN + b" HTTP/1.1\n\n",
    "TE and CL": b"PUT /v2/open/own/app/manifests/v1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n"
    + HOST
    + b"\r\n0\r\n\r\nGET "
    + HIDDEN
    + b" HTTP/1.1\r\n"
    + HOST
    + b"\r\n",
    "body on GET": b"GET /v2/ HTTP/1.1\r\nContent-Length: 60\r\n" + HOST + b"\r\nGET " + HIDDEN + b" HTTP/1.1\r\n\r\n",
    "pipelined": b"GET /v2/ HTTP/1.1\r\n" + HOST + b"\r\nGET " + HIDDEN + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "form that mounts": b"POST /v2/open/own/app/blobs/uploads/ HTTP/1.1\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 93\r\n"
    + HOST
    + b"\r\nmount=SECRET&from=hidden/app",
    "mount by query": b"POST /v2/open/own/app/blobs/uploads/?mount=SECRET&from=hidden/app HTTP/1.1\r\n"
    + HOST
    + b"\r\n",
}


class RecordedChannel:
    """A channel with all of its input from the start, which keeps its output."""

    def __init__(self, raw: bytes) -> None:
        self._left = [raw]
        self.got = bytearray()

    def scheduled(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Run the coroutine's steps in turn with those of others, as a tunnel's channel does."""
        return Share(fair_queue(asyncio.get_running_loop())).scheduled(coroutine)

    async def checkpoint(self) -> None:
        """Let other tasks run."""
        await asyncio.sleep(0)

    async def wanted(self) -> bool:
        """Return whether there is more input."""
        return bool(self._left)

    async def read(self) -> bytes:
        """Return the input, then the end of the stream."""
        return self._left.pop() if self._left else b""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep the gate's output."""
        self.got += data

    def write_eof(self) -> None:
        """Do nothing, since the output is complete anyway."""

    def close(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


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
        wire = RecordedChannel(raw)
        async with asyncio.timeout(DEADLINE):
            caller = replace(CALLER, agent=agent)
            await self.gate.serve(wire, caller, Forward("registry", (), self.registry.endpoint), Traffic())
        return bytes(wire.got)

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


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Return a registry with repositories that are open to all, open to push, denied, and not granted."""
    folder = tmp_path_factory.mktemp("differential")
    marks = tuple(secrets.token_hex(16).encode() for _ in range(3))
    policy = GroupPolicy.build(
        "ci", pull=(PULL,), push=(PUSH,), delete=(DELETE,), deny=(DENY,), immutable_tags=(IMMUTABLE,)
    )
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
        gate = gate_with(policy)
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


@dataclass
class Results:
    """The results of the cases."""

    failures: list[str]
    answers: Counter[int]


async def run_cases(subject: Subject, numbers: Iterator[int], results: Results) -> None:
    """Send the cases; each of the agent's own uploads is started again once it has been used up."""
    for number in numbers:
        if len(subject.contents.own_uploads) < OWN_UPLOADS or number % 50 == 0:
            subject.contents.own_uploads[OWN_UPLOADS - 1 :] = []
            subject.contents.own_uploads.insert(0, await subject.begin())
        raw = make_case(SEED, number, subject.contents)
        try:
            got = await subject.send(raw)
        except TimeoutError:
            results.failures.append(f"case {number} hung: {raw!r}")
            continue
        results.answers[int(got[9:12]) if got else 0] += 1
        if subject.leaks(got):
            results.failures.append(f"case {number} leaked: {raw!r} was answered {got!r}")


def judge(subject: Subject, offset: int) -> tuple[list[LoggedRequest], list[str]]:
    """Return what the registry served, and what of it the policy does not allow."""
    served = subject.log_since(offset)
    # The requests that began the foreign uploads are in the log too, before the offset.
    wrong = [(line, found) for line in served if (found := violation(line, subject.forbidden))]
    return served, [f"{found}: {line}" for line, found in wrong]


@pytest.mark.timeout(max(120, CASES // 20))
async def test_no_request_makes_the_registry_act_outside_of_the_policy(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    """No request outside of the policy reaches the registry, no secret is returned, and nothing secret has changed."""
    release = subject.registry.ask("GET", "/v2/open/own/app/manifests/v1")
    hidden = [subject.registry.ask("GET", f"/v2/{name}/tags/list") for name in ("open/secret/app", "hidden/app")]
    offset = subject.access_log.stat().st_size
    results = Results([], Counter())
    numbers = iter(range(CASES))
    began = time.perf_counter()

    async with asyncio.TaskGroup() as tasks:
        for worker in range(PARALLEL_CHANNELS):
            tasks.create_task(run_cases(subject, numbers, results), name=f"worker {worker}")
    took = time.perf_counter() - began
    served, wrong = judge(subject, offset)

    with capsys.disabled():
        done = sum(200 <= line.status < 300 for line in served)
        kinds = Counter(f"{line.method} {line.status}" for line in served if line.status < 300)
        print(f"\n{CASES} cases of seed {SEED} in {took:.1f} s, {CASES / took:.0f} a second")  # noqa: T201
        print(f"{len(served)} requests reached the registry, {done} of them 2xx: {dict(kinds.most_common())}")  # noqa: T201
        print(f"first answers: {dict(sorted(results.answers.items()))}")  # noqa: T201
    assert not results.failures
    assert not wrong
    after = [subject.registry.ask("GET", f"/v2/{name}/tags/list") for name in ("open/secret/app", "hidden/app")]
    assert [answer[2] for answer in after] == [answer[2] for answer in hidden]
    assert subject.registry.ask("GET", "/v2/open/own/app/manifests/v1")[2] == release[2]
    # The test proves something only if every kind of allowed request reached the registry.
    assert {
        "GET 200",
        "HEAD 200",
        "POST 202",
        "POST 201",
        "PATCH 202",
        "PUT 201",
        "DELETE 204",
        "DELETE 202",
    } <= kinds.keys()


@pytest.mark.parametrize("raw", REGRESSIONS.values(), ids=REGRESSIONS.keys())
async def test_known_attacks_do_not_reach_the_registry(subject: Subject, raw: bytes) -> None:
    """Requests that the registry is known to read differently, and cases that once failed, do not reach it."""
    offset = subject.access_log.stat().st_size
    secret = subject.contents.secret_digests[-1].encode()

    got = await subject.send(raw.replace(b"SECRET", secret))

    assert judge(subject, offset)[1] == []
    assert not subject.leaks(got)


async def test_the_oracle_detects_a_gate_that_allows_everything(subject: Subject) -> None:
    """With a gate that allows everything, the same cases are full of violations and leaks."""
    policy = GroupPolicy.build("ci", push=("**",), delete=())
    permissive = replace(subject, gate=gate_with(policy))
    offset = subject.access_log.stat().st_size
    results = Results([], Counter())

    await run_cases(permissive, iter(range(1500)), results)

    assert len(judge(subject, offset)[1]) > 10
    assert results.failures
