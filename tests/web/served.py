"""The status page of a fake daemon, served on loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp

from tests.control.fake_daemon import NOW, FakeDaemon, record, up, world
from tests.web.listening import listening
from tunnelmgr.core.activity import Refusal, TrafficSample, Transfer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.core.tunnel import Phase, Resting, TunnelStatus
from tunnelmgr.core.world import Quarantine, Record, World
from tunnelmgr.observability.metrics import Metrics
from tunnelmgr.web.health import HealthRoutes
from tunnelmgr.web.pages import StatusPages

TRANSFER = Transfer(
    number=1,
    agent=AgentId("static:builder-1"),
    group="ci",
    forward="registry",
    method="GET",
    action="pull",
    repository="team/app",
    reference="sha256:0123",
    status=200,
    to_agent=50 * 2**20,
    from_agent=500,
    seconds=5.0,
)
REFUSAL = Refusal(
    at=NOW,
    since=NOW - 60,
    count=17,
    agent=AgentId("static:builder-1"),
    group="ci",
    forward="registry",
    method="PUT",
    action="push",
    repository="team/app",
    reference="v1",
    verdict="refused",
    rule="default",
    status=403,
)


def sample(number: int) -> TrafficSample:
    """Return one of the samples of an hour."""
    return TrafficSample(NOW + 60 * number, 60.0, number * 10**6, number * 10**4, number, number % 3)


def busy_daemon() -> FakeDaemon:
    """Return a daemon with an agent in each phase, a transfer, a refusal and an hour of samples."""
    return FakeDaemon(running=[TRANSFER], refused=[REFUSAL], samples=[sample(number) for number in range(60)])


def large_fleet(count: int) -> World:
    """Return a world with this many agents, some of them in quarantine and many of them down with a long message."""

    def entry(number: int) -> tuple[Record, TunnelStatus]:
        one = record(f"builder-{number:05d}", first_seen=NOW + number)
        if number % 10 == 3:
            why = f"cannot reach 10.0.{number % 256}.{number % 250} port 22: Connection refused " + 10 * "and so on "
            return one, Resting(Phase.DOWN, NOW, failures=3, retry_at=NOW + 60, error="unreachable", message=why)
        if number % 100 == 7:
            mark = Quarantine(NOW, "host-key-mismatch", "the machine holds another host key; " + 5 * "investigate it ")
            return replace(one, quarantine=mark), Resting(Phase.QUARANTINED, NOW, error=mark.code, message=mark.message)
        return one, up(since=NOW)

    return world(*(entry(number) for number in range(count)))


@asynccontextmanager
async def served(daemon: FakeDaemon, names: tuple[str, ...] = (), port: int | None = None) -> AsyncIterator[str]:
    """Serve the page of a daemon, by default on a free port, and return its address as a URL."""
    pages = StatusPages(daemon, lambda: NOW + 100)
    routes = (*HealthRoutes(daemon, Metrics()).routes(), *pages.routes())
    async with listening(routes, names, port) as at:
        try:
            yield f"http://{at}"
        finally:
            pages.close()


async def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Return the status, the text and the headers of an answer."""
    async with aiohttp.ClientSession() as client, client.request(method, url, headers=headers) as answer:
        return answer.status, await answer.text(), dict(answer.headers)
