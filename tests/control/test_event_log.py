"""`/v1/events`: what it sends, and where a client that was away continues."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.control.fake_daemon import NOW, FakeDaemon, record, up
from tests.control.sse_client import events
from tunnelmgr.control.event_log import KEPT, MAX_CLIENTS, EventLog
from tunnelmgr.control.server import ControlServer
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import HistoryEntry

URL = "http://localhost/v1/events"
SEEN = HistoryEntry(NOW, "seen", "in source office")


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    """Serve an event log on a unix socket."""
    log = EventLog("process-1")
    server = ControlServer(FakeDaemon(), tmp_path / "sock", log.routes())
    await server.start()
    yield log
    log.close()
    await server.close()


@pytest.fixture
def socket(tmp_path: Path, log: EventLog) -> Path:  # noqa: ARG001 - it has to run
    """Return the socket."""
    return tmp_path / "sock"


def connector(socket: Path) -> aiohttp.UnixConnector:
    """Return a way to the socket."""
    return aiohttp.UnixConnector(str(socket))


async def test_a_step_and_a_change_of_phase_are_events(log: EventLog, socket: Path) -> None:
    """Each step of a history and each change of a phase is an event with the agent and its facts as JSON."""
    async with events(URL, connector(socket)) as stream:
        log.history_grew(record("builder-1"), SEEN)
        log.phase_changed(record("builder-1"), Phase.CONNECTING, up())
        log.phase_changed(record("builder-1"), Phase.UP, None)
        step, came_up, removed = [await stream.next() for _ in range(3)]

    assert step is not None
    assert came_up is not None
    assert removed is not None
    assert (step.event, came_up.event) == ("history", "phase")
    facts = json.loads(step.data)
    assert (facts["agent"], facts["step"], facts["time"]) == ("static:builder-1", "seen", "2023-11-14T22:13:20.000Z")
    change = json.loads(came_up.data)
    assert (change["was"], change["phase"], change["error"]) == ("connecting", "up", None)
    assert json.loads(removed.data)["phase"] is None


async def test_a_client_continues_after_the_last_event_that_it_has_seen(log: EventLog, socket: Path) -> None:
    """With `Last-Event-ID`, what was missed is sent first; without it, only what is new."""
    for name in ("a", "b", "c"):
        log.history_grew(record(name), SEEN)
    async with events(URL, connector(socket), Last_Event_ID="process-1-1") as stream:
        missed = [await stream.next() for _ in range(2)]
    async with events(URL, connector(socket)) as stream:
        log.history_grew(record("d"), SEEN)
        new = await stream.next()

    assert [json.loads(event.data)["name"] for event in missed if event] == ["b", "c"]
    assert new is not None
    assert (json.loads(new.data)["name"], new.id) == ("d", "process-1-4")


@pytest.mark.parametrize("last", ["process-0-1", "process-1-x", "process-1--1", "x", "process-1-1"])
async def test_a_client_that_missed_too_much_is_told_to_begin_again(log: EventLog, socket: Path, last: str) -> None:
    """An id of another process, or one that is too old, is answered with `reset`, and new events follow."""
    for _ in range(KEPT + 2):
        log.history_grew(record("a"), SEEN)
    async with events(URL, connector(socket), Last_Event_ID=last) as stream:
        first = await stream.next()
        log.history_grew(record("b"), SEEN)
        second = await stream.next()

    assert first is not None
    assert second is not None
    assert (first.event, first.id) == ("reset", f"process-1-{KEPT + 2}")
    assert json.loads(second.data)["name"] == "b"


async def test_the_number_of_clients_is_bounded(log: EventLog, socket: Path) -> None:
    """One client too many gets 503 with a time to wait; a place that becomes free is used again."""
    async with AsyncExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            await stack.enter_async_context(events(URL, connector(socket)))
        async with events(URL, connector(socket)) as refused:
            assert (refused.answer.status, refused.answer.headers["Retry-After"]) == (503, "5")

    for _ in range(100):
        log.history_grew(record("a"), SEEN)  # so that the streams whose clients have gone are noticed
        async with events(URL, connector(socket)) as stream:
            if stream.answer.status == 200:
                return
        await asyncio.sleep(0.01)
    pytest.fail("no place has become free")


async def test_the_streams_end_when_the_log_is_closed(log: EventLog, socket: Path) -> None:
    """At a stop, every stream ends at once, and none begins any more."""
    async with events(URL, connector(socket)) as stream:
        log.close()
        assert await stream.next() is None
    async with events(URL, connector(socket)) as refused:
        assert refused.answer.status == 503
