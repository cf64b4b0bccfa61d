"""What has happened to agents, as a stream: `GET /v1/events`.

The last events are kept, so that a client that was away continues where it was (`Last-Event-ID`). An id names the
process too: after a restart, or if too many events have passed, the client gets the event `reset`, and reads the agents
again.
"""

import json
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from aiohttp import web

from tunnelmgr.control.sse import EventStream, EventStreams
from tunnelmgr.control.views import Json, step_view
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.core.tunnel import Phase, TunnelStatus
from tunnelmgr.core.world import HistoryEntry, Record

KEPT: Final = 1000
"""Events that are kept."""
MAX_CLIENTS: Final = 32


class _LoggedEvent(NamedTuple):
    number: int
    kind: str
    facts: Json


class EventLog:
    """Keeps the last events and serves them; `process` distinguishes this process from earlier ones."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._last = 0
        self._events: deque[_LoggedEvent] = deque(maxlen=KEPT)
        self._streams = EventStreams(MAX_CLIENTS)

    def history_grew(self, record: Record, entry: HistoryEntry) -> None:
        """Add a step of an agent's history."""
        self._add("history", {**_identity(record), **step_view(entry)})

    def phase_changed(self, record: Record, was: Phase | None, status: TunnelStatus | None) -> None:
        """Add a change of an agent's phase; `was` is None for a new agent, `status` for one that was removed."""
        now = {
            "time": timestamp(record.changed if status is None else status.since),
            "phase": None if status is None else status.phase.value,
            "was": None if was is None else was.value,
            "error": None if status is None else status.error,
            "message": None if status is None else status.message or None,
        }
        self._add("phase", {**_identity(record), **now})

    def close(self) -> None:
        """End every stream."""
        self._streams.close()

    def routes(self) -> Iterable[web.RouteDef]:
        """Return the route of the stream."""
        return (web.get("/v1/events", self._serve, allow_head=False),)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """Serve the events from the one that the client has seen last, or from now on."""
        seen = self._position(request.headers.get("Last-Event-ID"))
        async with self._streams.open(request) as stream:
            await stream.start()
            while not stream.closed:
                seen = await self._send_since(seen, stream)
                await stream.wait()
        return stream.response

    async def _send_since(self, seen: int | None, stream: EventStream) -> int:
        """Send what is newer than the event that the client has seen; return the number of the last one."""
        if seen is None or seen < self._last - len(self._events):
            seen = self._last
            await stream.send("reset", "{}", self._id(seen))
        for event in [event for event in self._events if event.number > seen]:
            await stream.send(event.kind, json.dumps(event.facts), self._id(event.number))
            seen = event.number
        return seen

    def _add(self, kind: str, facts: Json) -> None:
        self._last += 1
        self._events.append(_LoggedEvent(self._last, kind, facts))
        self._streams.wake()

    def _id(self, number: int) -> str:
        return f"{self._process}-{number}"

    def _position(self, last: str | None) -> int | None:
        """Return the number of the event that the client has seen last; None if this process does not know it."""
        if last is None:
            return self._last
        process, _, number = last.rpartition("-")
        if process != self._process or not (number.isascii() and number.isdecimal() and len(number) < 19):  # noqa: PLR2004
            return None
        return min(int(number), self._last)


def _identity(record: Record) -> dict[str, Any]:
    agent = record.agent
    return {"agent": agent.id, "name": agent.name, "group": agent.group, "source": agent.source}
