"""The page's live updates: only what has changed is sent, rarely, to a bounded number of clients."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp.test_utils import make_mocked_request

from tests.control.fake_daemon import NOW, FakeDaemon, record, up
from tests.control.sse_client import Events, events
from tests.until import until
from tests.web.listening import listening
from tests.web.served import TRANSFER, busy_daemon, large_fleet, served
from tunnelmgr.control import loop_share
from tunnelmgr.control.loop_share import LoopShare
from tunnelmgr.control.sse import EventStream
from tunnelmgr.core.activity import Transfer
from tunnelmgr.core.agent import AgentId
from tunnelmgr.web import pages
from tunnelmgr.web.pages import AGENT, MAX_CLIENTS, OVERVIEW, StatusPages


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pause between updates."""
    monkeypatch.setattr(pages, "MIN_PAUSE", 0.02)


async def fragments(stream: Events, count: int) -> dict[str, str]:
    """Return the next parts that a stream sends."""
    received = [await stream.next() for _ in range(count)]
    parts = [json.loads(event.data) for event in received if event is not None and event.event == "fragment"]
    return {part["id"]: part["html"] for part in parts}


@asynccontextmanager
async def watching(daemon: FakeDaemon, path: str = "/events") -> AsyncIterator[Events]:
    """Open a stream of a daemon's page."""
    async with served(daemon) as url, events(url + path) as stream:
        yield stream


async def test_a_client_gets_every_part_first_and_then_only_what_changes() -> None:
    """After the whole page, an agent that comes up changes the summary and the table, and nothing else."""
    daemon = busy_daemon()
    async with watching(daemon) as stream:
        first = await fragments(stream, len(OVERVIEW))
        back = replace(record("builder-2"), trust=record("builder-1").trust)
        daemon.world = daemon.world.with_tunnel(back.agent.id, up())
        changed = await fragments(stream, 2)

    assert tuple(first) == OVERVIEW
    assert set(changed) == {"summary", "agents"}
    assert "▽" in first["agents"]
    assert "▽" not in changed["agents"]


async def test_ages_alone_are_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page on which only ages have changed is not sent again."""
    daemon, now = busy_daemon(), [1_700_000_100.0]
    made = StatusPages.__init__
    monkeypatch.setattr(StatusPages, "__init__", lambda self, observed, _clock: made(self, observed, lambda: now[0]))
    async with watching(daemon) as stream:
        await fragments(stream, len(OVERVIEW))
        now[0] += 3600
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await stream.next()
        daemon.running = []
        changed = await fragments(stream, 1)

    assert set(changed) == {"transfers"}


async def test_the_stream_follows_the_selection() -> None:
    """The stream of a filtered page has the filtered table."""
    async with watching(busy_daemon(), "/events?phase=quarantined") as stream:
        table = (await fragments(stream, len(OVERVIEW)))["agents"]

    assert "builder-3" in table
    assert "builder-1" not in table


async def test_an_agents_page_is_live_until_the_agent_is_forgotten() -> None:
    """The stream of an agent's page has its parts, and ends when the agent is forgotten."""
    daemon = busy_daemon()
    async with watching(daemon, "/agents/static:builder-1/events") as stream:
        parts = await fragments(stream, len(AGENT))
        records = {id_: one for id_, one in daemon.world.records.items() if id_ != AgentId("static:builder-1")}
        daemon.world = replace(daemon.world, records=records, tunnels={})
        assert await stream.next() is None

    assert tuple(parts) == AGENT


@pytest.mark.parametrize(
    ("path", "status"), [("/agents/nobody/events", 404), ("/agents/builder-/events", 404), ("/events?sort=x", 400)]
)
async def test_a_stream_of_nothing_is_refused(path: str, status: int) -> None:
    """An unknown agent, a text that several agents match, and an invalid selection have no stream."""
    async with watching(busy_daemon(), path) as stream:
        assert stream.answer.status == status


async def test_one_client_cannot_have_every_stream() -> None:
    """A client gets half of the streams, then 503, which the script takes as a reason to try again later."""
    async with served(busy_daemon()) as url, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(events(f"{url}/events")) for _ in range(MAX_CLIENTS)]

        statuses = [stream.answer.status for stream in streams]

    assert statuses == [200] * (MAX_CLIENTS // 2) + [503] * (MAX_CLIENTS // 2)


async def test_the_place_of_a_client_that_has_gone_is_free_at_once() -> None:
    """Closed streams do not count, although each of them notices only with its next message."""
    async with served(busy_daemon()) as url:
        for _ in range(2 * MAX_CLIENTS):
            async with events(f"{url}/events") as stream:
                assert stream.answer.status == 200


async def test_a_stream_waits_if_too_many_requests_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that cannot have a turn comes later; the stream, whose answer has started, continues."""
    monkeypatch.setattr(loop_share, "MAX_OWN", 0)
    share = LoopShare()
    status_pages = StatusPages(busy_daemon(), lambda: NOW, share)
    async with listening(status_pages.routes()) as at, AsyncExitStack() as stack:
        async with share.turn(make_mocked_request("GET", "/")):
            stream = await stack.enter_async_context(events(f"http://{at}/events"))
            assert stream.answer.status == 200

        assert len(await fragments(stream, len(OVERVIEW))) == len(OVERVIEW)


async def test_expensive_updates_come_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause grows with the cost of an update and the number of clients, so that the loop has time for tunnels."""
    pauses: list[float] = []

    async def wait(_stream: object, seconds: float) -> bool:
        pauses.append(seconds)
        await asyncio.sleep(0.05)
        return False

    daemon = busy_daemon()
    daemon.world = large_fleet(5000)
    monkeypatch.setattr(EventStream, "wait", wait)
    async with served(daemon) as url, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(events(f"{url}/events")) for _ in range(2)]
        for stream in streams:
            await fragments(stream, len(OVERVIEW))

    assert max(pauses) > 0.02


async def test_without_clients_nothing_is_computed() -> None:
    """Before a client comes, and after the last one has gone, the daemon is not asked for anything."""
    asked: list[int] = []

    class Counting(FakeDaemon):
        """Counts the questions."""

        def transfers(self) -> list[Transfer]:
            """Count one, and return a transfer that changes each time."""
            asked.append(1)
            return [replace(TRANSFER, to_agent=len(asked))]

    status_pages = StatusPages(Counting(), lambda: NOW)
    async with listening(status_pages.routes()) as at:
        assert not asked
        async with events(f"http://{at}/events") as stream:
            await fragments(stream, len(OVERVIEW))
        await until(lambda: len(status_pages._streams) == 0)
        before = len(asked)
        async with events(f"http://{at}/agents/nobody/events"):
            pass

    assert len(asked) == before


async def test_the_streams_end_at_a_stop() -> None:
    """When the pages are closed, every stream ends, and no other begins."""
    status_pages = StatusPages(busy_daemon(), lambda: NOW)
    async with listening(status_pages.routes()) as at:
        async with events(f"http://{at}/events") as stream:
            await fragments(stream, len(OVERVIEW))
            status_pages.close()
            assert await stream.next() is None
        async with events(f"http://{at}/events") as refused:
            assert refused.answer.status == 503
