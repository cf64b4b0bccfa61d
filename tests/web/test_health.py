"""`/healthz` and `/readyz` as load balancers and container engines ask for them."""

import json

import aiohttp
import pytest

from tests.control.fake_daemon import FakeDaemon
from tests.web.listening import listening
from tunnelmgr.core.health import RegistryHealth
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.web.health import PATHS, HealthRoutes

AWAY = RegistryHealth(reachable=False, loopback_only=None, error="127.0.0.1:5000: Connection refused")


async def fetch(daemon: FakeDaemon, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Return the status, the content type and the body of an answer."""
    async with (
        listening(HealthRoutes(daemon, Metrics()).routes()) as at,
        aiohttp.ClientSession() as client,
        client.request(method, f"http://{at}{path}", headers=headers) as answer,
    ):
        return answer.status, answer.content_type, await answer.text()


async def test_a_daemon_whose_loop_runs_is_healthy() -> None:
    """`/healthz` answers 200 even if the registry is away, because a restart would not help."""
    assert await fetch(FakeDaemon(registry=AWAY), "/healthz") == (200, "text/plain", "ok\n")


async def test_a_ready_daemon_answers_200_with_one_line_per_check() -> None:
    """`/readyz` has one JSON object per line, each with its name, its result and what was found."""
    status, kind, body = await fetch(FakeDaemon(), "/readyz")

    checks = [json.loads(line) for line in body.splitlines()]
    assert (status, kind) == (200, "application/x-ndjson")
    assert [check["check"] for check in checks] == ["running", "registry", "state", "source office"]
    assert all(check["ok"] for check in checks)


async def test_a_daemon_that_is_not_ready_answers_503_and_says_why() -> None:
    """`/readyz` is 503 if one check fails, and the line of that check has the error."""
    status, _, body = await fetch(FakeDaemon(registry=AWAY), "/readyz")

    failed = [check for check in map(json.loads, body.splitlines()) if not check["ok"]]
    assert status == 503
    assert failed == [{"check": "registry", "ok": False, "message": "127.0.0.1:5000: Connection refused"}]


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_head_is_answered_as_get_without_a_body(path: str) -> None:
    """HEAD has the status of GET and no body, for load balancers that send it."""
    status, _, body = await fetch(FakeDaemon(), path, "HEAD")

    assert (status, body) == (200, "")


async def test_head_of_a_daemon_that_is_not_ready_is_503() -> None:
    """HEAD of `/readyz` is 503 if a check fails."""
    assert (await fetch(FakeDaemon(registry=AWAY), "/readyz", "HEAD"))[0] == 503


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_any_host_is_answered(path: str) -> None:
    """Health checks and scrapes work under any name of this machine."""
    assert (await fetch(FakeDaemon(), path, Host="controller.example"))[0] == 200
