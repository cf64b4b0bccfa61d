"""The TCP listener: what it answers, and how it starts and ends."""

import aiohttp
import pytest
from aiohttp import web

from tests.control.fake_daemon import FakeDaemon
from tests.web.listening import listening
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.web.health import HealthRoutes
from tunnelmgr.web.listener import ReadOnlyListener


def routes() -> list[web.RouteDef]:
    """Return the health routes of a daemon."""
    return list(HealthRoutes(FakeDaemon(), Metrics()).routes())


async def test_a_port_that_is_taken_is_an_error_of_the_system() -> None:
    """A port that is taken raises OSError and leaves nothing open."""
    second = ReadOnlyListener(routes())
    async with listening(routes()) as at:
        with pytest.raises(OSError, match="in use"):
            await second.start(at)
        await second.close()


async def test_closing_a_listener_that_never_started_does_nothing() -> None:
    """A listener that never started can be closed."""
    await ReadOnlyListener(routes()).close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/healthz", "/v1/reload", "/nothing"])
async def test_only_reading_methods_are_answered(method: str, path: str) -> None:
    """Every method but GET and HEAD is refused with 405, on any path."""
    async with listening(routes()) as at, aiohttp.ClientSession() as client:
        answer = await client.request(method, f"http://{at}{path}")

        assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")
        assert "read-only" in await answer.text()


async def test_the_api_is_not_on_the_address() -> None:
    """The API of the unix socket is not served over TCP."""
    async with listening(routes()) as at, aiohttp.ClientSession() as client:
        assert (await client.get(f"http://{at}/v1/status")).status == 404
