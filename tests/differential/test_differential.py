"""Differential test: whatever is sent through the gate, the real registry does nothing outside the grant.

    CASES=100000 SEED=7 python -m pytest tests/differential -s

A case that ever failed becomes one of REGRESSIONS, by a name that says what it was.
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
from tests.differential.grammar import MANIFEST, Things, case_of
from tests.differential.oracle import DELETE, DENY, IMMUTABLE, PULL, PUSH, Foreign, Served, served_in, violation
from tests.gate.conftest import CALLER, Registry, digest_of, running_registry
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy
from tunnelmgr.dataplane.fair_queue import Share, fair_queue
from tunnelmgr.gate.gate import Gate
from tunnelmgr.gate.traffic import Traffic
from tunnelmgr.gate.uploads import Upload

CASES = int(os.environ.get("CASES", "3000"))
SEED = os.environ.get("SEED", "0")
AT_ONCE = 8
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


class Wire:
    """A channel on which everything was sent before it is served."""

    def __init__(self, raw: bytes) -> None:
        self._left = [raw]
        self.got = bytearray()

    def scheduled(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Have the coroutine take turns with others, as a tunnel's channel does."""
        return Share(fair_queue(asyncio.get_running_loop())).scheduled(coroutine)

    async def checkpoint(self) -> None:
        """Let others run."""
        await asyncio.sleep(0)

    async def wanted(self) -> bool:
        """Tell whether anything is left."""
        return bool(self._left)

    async def read(self) -> bytes:
        """Return what was sent, then the end."""
        return self._left.pop() if self._left else b""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep what the gate answers."""
        self.got += data

    def write_eof(self) -> None:
        """Do nothing: it is all kept anyway."""

    def close(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


@dataclass
class Ground:
    """A registry with something to hide, a gate before it, and what an agent may know of them."""

    registry: Registry
    access_log: Path
    gate: Gate
    things: Things
    foreign: Foreign
    secrets: tuple[bytes, ...]

    async def send(self, raw: bytes, agent: AgentId = CALLER.agent) -> bytes:
        """Send bytes on a channel of their own; returns all that came back."""
        wire = Wire(raw)
        async with asyncio.timeout(DEADLINE):
            caller = replace(CALLER, agent=agent)
            await self.gate.serve(wire, caller, self.registry.endpoint, Traffic())
        return bytes(wire.got)

    async def begin(self, agent: AgentId = CALLER.agent) -> str:
        """Begin an upload through the gate; returns where it goes on."""
        begun = await self.send(b"POST /v2/open/own/app/blobs/uploads/ HTTP/1.1\r\n" + HOST + b"\r\n", agent)
        return begun.partition(b"Location: http://localhost:5000")[2].partition(b"\r\n")[0].decode()

    def leak_in(self, got: bytes) -> bool:
        """Whether an answer holds what the agent may not know."""
        return any(secret in got for secret in self.secrets)

    def log_since(self, offset: int) -> list[Served]:
        """Return what the registry has served since the log had this size."""
        with self.access_log.open() as log:
            log.seek(offset)
            return served_in(log.read())


def upload_id(location: str) -> str:
    """Return the id in an upload's location."""
    return location.partition("?")[0].rpartition("/")[2]


def push_marked(registry: Registry, repository: str, mark: bytes) -> list[str]:
    """Push an image whose layer and manifest hold a mark; returns the digests of all its parts."""
    manifest = json.loads(registry.manifest(repository, b"layer " + mark)) | {"annotations": {"mark": mark.decode()}}
    raw = json.dumps(manifest).encode()
    assert registry.ask("PUT", f"/v2/{repository}/manifests/v1", raw, MANIFEST)[0] == 201
    return [digest_of(raw), manifest["layers"][0]["digest"]]


def push_untagged(registry: Registry) -> str:
    """Push an image to open/own/app by digest alone, which may be deleted; returns its digest."""
    manifest = registry.manifest("open/own/app", b"untagged")
    assert registry.ask("PUT", f"/v2/open/own/app/manifests/{digest_of(manifest)}", manifest, MANIFEST)[0] == 201
    return digest_of(manifest)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Seed a registry: open to all, open to push, denied, and not granted."""
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
        begun = registry.ask("POST", "/v2/open/own/app/blobs/uploads/")[1]["location"].partition(
            str(registry.endpoint)
        )[2]
        release = registry.ask("HEAD", "/v2/open/own/app/manifests/v1")[1]["docker-content-digest"]
        things = Things([*seen, push_untagged(registry)], unseen, registry.manifest("open/own/app", b"pushed"))
        gate = gate_with(policy)
        ground = Ground(registry, folder / "access.log", gate, things, Foreign(frozenset(), release), marks)
        stranger = AgentId("static:other")
        other = asyncio.run(ground.begin(stranger))
        place = gate.context.uploads.find(stranger, Upload(registry.endpoint, "open/own/app", upload_id(other)))
        assert place is not None
        direct = f"/v2/open/own/app/blobs/uploads/{upload_id(begun)}"
        things.foreign_uploads = (
            other,
            begun,
            direct,
            f"{direct}?state=open",
            f"{place.path}?{place.query}",
            place.path,
        )
        ground.foreign = Foreign(frozenset({upload_id(begun), upload_id(place.path)}), release)
        yield ground


@dataclass
class Tally:
    """What became of the cases."""

    failures: list[str]
    answers: Counter[int]


async def run_cases(ground: Ground, numbers: Iterator[int], tally: Tally) -> None:
    """Send cases until there are no more; each of the own uploads is begun anew when it was used up."""
    for number in numbers:
        if len(ground.things.own_uploads) < OWN_UPLOADS or number % 50 == 0:
            ground.things.own_uploads[OWN_UPLOADS - 1 :] = []
            ground.things.own_uploads.insert(0, await ground.begin())
        raw = case_of(SEED, number, ground.things)
        try:
            got = await ground.send(raw)
        except TimeoutError:
            tally.failures.append(f"case {number} hung: {raw!r}")
            continue
        tally.answers[int(got[9:12]) if got else 0] += 1
        if ground.leak_in(got):
            tally.failures.append(f"case {number} leaked: {raw!r} was answered {got!r}")


def judge(ground: Ground, offset: int) -> tuple[list[Served], list[str]]:
    """Return what the registry served, and what of it was outside the grant."""
    served = ground.log_since(offset)
    # Beginning the foreign uploads stands in the log as well, but before the offset.
    wrong = [(line, found) for line in served if (found := violation(line, ground.foreign))]
    return served, [f"{found}: {line}" for line, found in wrong]


@pytest.mark.timeout(max(120, CASES // 20))
async def test_whatever_is_sent_the_registry_stays_within_the_grant(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    """No request outside the grant reaches it, no secret comes back, and nothing of what is hidden has changed."""
    release = ground.registry.ask("GET", "/v2/open/own/app/manifests/v1")
    hidden = [ground.registry.ask("GET", f"/v2/{name}/tags/list") for name in ("open/secret/app", "hidden/app")]
    offset = ground.access_log.stat().st_size
    tally = Tally([], Counter())
    numbers = iter(range(CASES))
    began = time.perf_counter()

    async with asyncio.TaskGroup() as tasks:
        for lane in range(AT_ONCE):
            tasks.create_task(run_cases(ground, numbers, tally), name=f"lane {lane}")
    took = time.perf_counter() - began
    served, wrong = judge(ground, offset)

    with capsys.disabled():
        done = sum(200 <= line.status < 300 for line in served)
        kinds = Counter(f"{line.method} {line.status}" for line in served if line.status < 300)
        print(f"\n{CASES} cases of seed {SEED} in {took:.1f} s, {CASES / took:.0f} a second")  # noqa: T201
        print(f"{len(served)} requests reached the registry, {done} of them 2xx: {dict(kinds.most_common())}")  # noqa: T201
        print(f"first answers: {dict(sorted(tally.answers.items()))}")  # noqa: T201
    assert not tally.failures
    assert not wrong
    after = [ground.registry.ask("GET", f"/v2/{name}/tags/list") for name in ("open/secret/app", "hidden/app")]
    assert [answer[2] for answer in after] == [answer[2] for answer in hidden]
    assert ground.registry.ask("GET", "/v2/open/own/app/manifests/v1")[2] == release[2]
    # The test would prove nothing if hardly anything got through, so every kind of allowed request must have.
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
async def test_what_once_got_through_does_not_any_more(ground: Ground, raw: bytes) -> None:
    """The readings that the registry is known to have (traps 21 to 23), and every case that ever failed."""
    offset = ground.access_log.stat().st_size
    secret = ground.things.secret_digests[-1].encode()

    got = await ground.send(raw.replace(b"SECRET", secret))

    assert judge(ground, offset)[1] == []
    assert not ground.leak_in(got)


async def test_the_oracle_catches_a_gate_that_lets_everything_through(ground: Ground) -> None:
    """Or it would be worth nothing: with open grants the same cases are full of violations and of leaks."""
    policy = GroupPolicy.build("ci", push=("**",), delete=())
    opened = replace(ground, gate=gate_with(policy, uploads=ground.gate.context.uploads))
    offset = ground.access_log.stat().st_size
    tally = Tally([], Counter())

    await run_cases(opened, iter(range(1500)), tally)

    assert len(judge(ground, offset)[1]) > 10
    assert tally.failures
