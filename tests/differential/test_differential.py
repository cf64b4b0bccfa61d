"""Differential test: no request through the gate makes the real registry do anything outside of the policy.

    CASES=100000 SEED=7 python -m pytest tests/differential -s

A case that once failed becomes one of REGRESSIONS, under a name that describes it.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from lab.gate_stand_ins import gate_with
from tests.differential.grammar import make_case
from tests.differential.oracle import (
    LoggedRequest,
    violation,
)
from tests.differential.subject import HOST, POLICY, Subject, new_marks, running_subject
from tunnelmgr.core.policy import GroupPolicy

CASES = int(os.environ.get("CASES", "3000"))
SEED = os.environ.get("SEED", "0")
PARALLEL_CHANNELS = 8
OWN_UPLOADS = 4

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


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Return a registry with repositories that are open to all, open to push, denied, and not granted."""
    with running_subject(tmp_path_factory.mktemp("differential"), gate_with(POLICY), new_marks()) as subject:
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
