"""Differential test: a gate with a cache gives every answer that one without gives, but for the time.

    CASES=100000 SEED=7 python -m pytest tests/differential/test_with_cache.py -s

Two equal registries, one behind each gate, get the same requests, one after another. So a cached answer that is
outdated, crosses the policy, or is not the registry's own shows as a difference.
"""

import asyncio
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from lab.gate_stand_ins import gate_with
from tests.differential.grammar import MANIFEST, make_case
from tests.differential.subject import HOST, POLICY, Subject, new_marks, running_subject
from tests.gate.conftest import CALLER
from tests.gate.docker_registry import digest_of
from tests.until import until
from tunnelmgr.cache.blob_cache import BlobCache
from tunnelmgr.cache.blob_files import BlobFiles
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.policy import GroupPolicy

Random = random.Random
CASES = int(os.environ.get("CASES", "3000")) // 6
SEED = os.environ.get("SEED", "0")
CACHE_BYTES = 1_000_000
"""Less than the blobs have together, so that some leave."""

READERS = GroupPolicy.build("readers", pull=("open/app", "open/own/new"))
BUILDERS = tuple(AgentId(f"static:builder-{number}") for number in (1, 2))
AGENTS = (*BUILDERS, AgentId("static:reader-1"), AgentId("static:reader-2"))
REPOSITORIES = (*("open/own/app", "open/own/new") * 5, "open/app", "open/secret/app", "hidden/app")
CONTENTS = tuple(bytes([size % 251]) * size for size in (7, 60_000, 66_000, 200_000, 400_000, 600_000))
ABSENT = digest_of(b"absent")
LINES = (
    *("", "", "", "Range: bytes=0-", "Range: bytes=100-", "Range: bytes=-50", "Range: bytes=5-9"),
    *("Range: bytes=70000-99999999", "Range: bytes=9999999-", "Range: bytes=x", "If-None-Match: *", "Accept: a/b"),
    *("Connection: close", "User-Agent: other", "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT"),
)
_DIFFERING = (
    (re.compile(rb"\r\nDate: [^\r]*"), b""),
    (re.compile(rb"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{32}\b"), b"UPLOAD"),
    (re.compile(rb"state=[\w.~%-]+"), b"state=STATE"),
    (re.compile(rb"127\.0\.0\.1:[0-9]+"), b"REGISTRY"),
)


@dataclass
class TwoGroups:
    """A policy source: the agents of `BUILDERS`, and that of the other cases, may push; all others are readers."""

    def policy_of(self, agent: AgentId, _: str) -> GroupPolicy:
        """Return the agent's policy."""
        return POLICY if agent in {*BUILDERS, CALLER.agent, "static:other"} else READERS


@dataclass
class Pair:
    """The same twice, without and with a cache."""

    plain: Subject
    cached: Subject

    async def send(self, raw: bytes, agent: AgentId) -> tuple[bytes, bytes]:
        """Send the same bytes to both, and return both outputs."""
        return await self.send_each(raw, raw, agent)

    async def send_each(self, plain: bytes, cached: bytes, agent: AgentId) -> tuple[bytes, bytes]:
        """Send something to each, and return both outputs."""
        return await asyncio.gather(self.plain.send(plain, agent), self.cached.send(cached, agent))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Return two equal registries, one behind a gate without, one behind a gate with a cache."""
    files = BlobFiles(tmp_path_factory.mktemp("cache"), CACHE_BYTES, 0)
    files.scan()
    marks = new_marks()
    with ExitStack() as stack:
        subjects = []
        for blobs in (None, BlobCache(files)):
            gate = gate_with(POLICY, blobs=blobs, policies=TwoGroups())
            subject = running_subject(tmp_path_factory.mktemp("registry"), gate, marks)
            subjects.append(stack.enter_context(subject))
        yield Pair(*subjects)


def comparable(output: bytes) -> list[list[bytes]]:
    """Return the lines of each response in an output, without those that differ between equal registries.

    The order of the fields is left out: a gate with a cache has another for a range.
    """
    for pattern, instead in _DIFFERING:
        output = pattern.sub(instead, output)
    return [sorted(response.split(b"\r\n")) for response in output.split(b"HTTP/1.1 ")]


class Requests:
    """Draws valid requests about few contents in few repositories, so that most meet what others left."""

    def __init__(self, rng: Random, pair: Pair) -> None:
        self._rng = rng
        self._pair = pair
        self.answers: Counter[str] = Counter()

    async def next(self) -> tuple[bytes, bytes]:
        """Send one or several requests, and return both outputs."""
        kinds = (self._pull, self._pull_at_once, self._push_blob, self._mount, self._push_manifest, self._delete)
        return await self._rng.choices(kinds, (50, 8, 20, 5, 12, 5))[0]()

    def _manifest(self) -> bytes:
        config, layer = CONTENTS[0], self._rng.choice(CONTENTS)
        parts = [{"mediaType": "a/b", "size": len(part), "digest": digest_of(part)} for part in (config, layer)]
        return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": parts[0], "layers": parts[1:]}).encode()

    def _target(self) -> str:
        """Return a blob's or a manifest's path."""
        repository = self._rng.choice(REPOSITORIES)
        if self._rng.random() < 0.5:
            digest = self._rng.choice((*map(digest_of, CONTENTS), ABSENT))
            return f"/v2/{repository}/blobs/{digest}"
        reference = self._rng.choice(("v1", "latest", digest_of(self._manifest())))
        return f"/v2/{repository}/manifests/{reference}"

    def _request(self, method: str, target: str, *lines: str, body: bytes = b"") -> bytes:
        lines = (*lines, f"Content-Length: {len(body)}") if method in {"POST", "PUT"} else lines
        head = "".join(f"{line}\r\n" for line in lines if line)
        return f"{method} {target} HTTP/1.1\r\n".encode() + HOST + head.encode() + b"\r\n" + body

    async def _pull(self) -> tuple[bytes, bytes]:
        """Pull several contents on one channel."""
        raw = b"".join(
            self._request(self._rng.choice(("GET", "GET", "HEAD")), self._target(), self._rng.choice(LINES))
            for _ in range(self._rng.randrange(1, 5))
        )
        return await self._pair.send(raw, self._rng.choice(AGENTS))

    async def _pull_at_once(self) -> tuple[bytes, bytes]:
        """Let all agents pull one content at the same time."""
        raw = self._request("GET", self._target(), self._rng.choice(LINES))
        outputs = await asyncio.gather(*(self._pair.send(raw, agent) for agent in AGENTS))
        return b"".join(plain for plain, _ in outputs), b"".join(cached for _, cached in outputs)

    async def _push_blob(self) -> tuple[bytes, bytes]:
        repository, content, agent = self._rng.choice(REPOSITORIES), self._rng.choice(CONTENTS), self._builder()
        started = await self._pair.send(self._request("POST", f"/v2/{repository}/blobs/uploads/"), agent)
        places = [re.search(rb"Location: http://localhost:5000([^\r]+)", output) for output in started]
        if places[0] is None or places[1] is None:
            return started
        puts = [
            self._request("PUT", f"{place[1].decode()}&digest={digest_of(content)}", body=content)
            for place in places
            if place is not None
        ]
        return await self._pair.send_each(puts[0], puts[1], agent)

    async def _mount(self) -> tuple[bytes, bytes]:
        to, origin = self._rng.choice(REPOSITORIES), self._rng.choice(REPOSITORIES)
        query = f"mount={digest_of(self._rng.choice(CONTENTS))}&from={origin}"
        return await self._pair.send(self._request("POST", f"/v2/{to}/blobs/uploads/?{query}"), self._builder())

    async def _push_manifest(self) -> tuple[bytes, bytes]:
        body = self._manifest()
        reference = self._rng.choice(("v1", "latest", digest_of(body)))
        target = f"/v2/{self._rng.choice(REPOSITORIES)}/manifests/{reference}"
        return await self._pair.send(
            self._request("PUT", target, f"Content-Type: {MANIFEST}", body=body), self._builder()
        )

    async def _delete(self) -> tuple[bytes, bytes]:
        """Delete something and pull it again, on one channel."""
        target = self._target()
        raw = b"".join(self._request(method, target) for method in ("GET", "DELETE", "GET"))
        return await self._pair.send(raw, self._builder())

    def _builder(self) -> AgentId:
        return self._rng.choice(AGENTS if self._rng.random() < 0.1 else BUILDERS)


@pytest.mark.timeout(max(120, CASES // 3))
async def test_pulls_between_pushes_and_deletes_are_the_same(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Agents of two groups get the same answers with a cache, in any order of pulls, pushes, mounts and deletes."""
    requests, statuses = Requests(Random(f"{SEED}/cache"), pair), Counter[bytes]()

    for number in range(CASES):
        plain, cached = await requests.next()
        assert comparable(plain) == comparable(cached), f"step {number} of seed {SEED}: {plain!r} is not {cached!r}"
        statuses.update(re.findall(rb"HTTP/1.1 ([0-9]{3}) ", plain))

    pulls = pair.cached.gate.context.cached_pulls
    assert pulls is not None
    with capsys.disabled():
        counted = {status.decode(): count for status, count in sorted(statuses.items())}
        print(f"\n{CASES} steps of seed {SEED}: {counted}; {pulls.counts}")  # noqa: T201
    # The test proves something only if blobs were served from the disk, and each kind of request succeeded.
    assert pulls.counts.hits > CASES // 20
    assert {b"200", b"201", b"202", b"206", b"403", b"404", b"416"} <= statuses.keys()


@pytest.mark.timeout(max(120, CASES // 3))
async def test_malformed_requests_are_answered_the_same(pair: Pair) -> None:
    """Requests that parsers disagree about get the same answers with a cache."""
    agent = CALLER.agent
    for number in range(CASES):
        if number % 50 == 0:
            for subject in (pair.plain, pair.cached):
                subject.contents.own_uploads[:] = [await subject.begin()]
        cases = [make_case(SEED, number, subject.contents) for subject in (pair.plain, pair.cached)]

        plain, cached = await pair.send_each(cases[0], cases[1], agent)

        assert comparable(plain) == comparable(cached), f"case {number} of seed {SEED}: {cases[0]!r}"


@dataclass
class Phase:
    """Whether a blob is in its repository now, None while that changes, and which agents have found that."""

    present: bool | None = None
    number: int = 0
    found: set[AgentId] = field(default_factory=set)

    def enter(self, *, present: bool | None) -> None:
        """Begin the next phase."""
        self.present, self.number, self.found = present, self.number + 1, set()


async def pull_always(subject: Subject, target: str, agent: AgentId, phase: Phase) -> None:
    """Pull until the task is cancelled; a status must be that of the phase in which its pull began and ended."""
    while True:
        began, present = phase.number, phase.present
        output = await subject.send(f"GET {target} HTTP/1.1\r\n".encode() + HOST + b"\r\n", agent)
        if phase.number == began and present is not None:
            assert int(output[9:12]) == (200 if present else 404), f"phase {began}"
            phase.found.add(agent)


async def test_each_delete_and_push_counts_for_all_from_its_response_on(pair: Pair) -> None:
    """While agents pull a blob without a pause, none gets it between its delete and its next push, and all after it."""
    subject, phase, content = pair.cached, Phase(), os.urandom(100_000)
    blob = f"/v2/open/own/new/blobs/{digest_of(content)}"

    async with asyncio.TaskGroup() as tasks:
        pulls = [
            tasks.create_task(pull_always(subject, blob, agent, phase), name=f"pulls of {agent}") for agent in AGENTS
        ]
        for _ in range(max(5, CASES // 50)):
            phase.enter(present=None)
            await asyncio.to_thread(subject.registry.push_blob, "open/own/new", content)
            phase.enter(present=True)
            await until(lambda: phase.found == set(AGENTS))
            phase.enter(present=None)
            await subject.send(f"DELETE {blob} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
            phase.enter(present=False)
            await until(lambda: phase.found == set(AGENTS))
        for pull in pulls:
            pull.cancel()
