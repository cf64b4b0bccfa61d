"""The status page: its routes, and its live updates.

A page is complete without a script. With one, `/events` and `/agents/ID/events` send each part of the page whose
content has changed, at most once a second, and less often if rendering is expensive: all clients together may use
`LOAD` of the event loop's time. Without clients, nothing is computed. Models and pages are made one at a time, with
pauses in between (`control/loop_share.py`), so that no number of readers takes the loop from the tunnels.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final
from zlib import crc32

from aiohttp import web

from tunnelmgr.control.loop_share import LoopShare, Turn
from tunnelmgr.control.sse import EventStreams
from tunnelmgr.control.units import duration
from tunnelmgr.control.views import Json, find
from tunnelmgr.core.agent import AgentId
from tunnelmgr.web.access import PAGE_HEADERS
from tunnelmgr.web.model import Observed, PageQuery, agent_page, overview
from tunnelmgr.web.rendering import STATIC, rendered, static_file

OVERVIEW: Final = ("summary", "traffic", "quarantines", "transfers", "refusals", "sources", "members", "agents")
AGENT: Final = ("agent", "transfers", "refusals", "history")
"""The parts of the two pages, in order."""
MAX_CLIENTS: Final = 16
MIN_PAUSE: Final = 1.0
"""Seconds between two updates of a client."""
LOAD: Final = 0.05
"""The share of the event loop's time that updates may take."""
_AGES = re.compile(r"(<time [^>]*>)[^<]*")
"""The ages in a page, which the script in the page keeps current."""

MakeModel = Callable[[Turn], Awaitable[Json | None]]


@dataclass(slots=True)
class _Sent:
    """What a client has on its screen, by part."""

    digests: dict[str, int] = field(default_factory=dict)

    def changes(self, fragments: tuple[str, ...], model: Json) -> list[tuple[str, str]]:
        """Return the parts that have changed, as name and HTML, which the client now has."""
        found = []
        for name in fragments:
            html = rendered(f"fragments/{name}.html", model)
            digest = crc32(_AGES.sub(r"\1", html).encode())
            if self.digests.get(name) != digest:
                self.digests[name] = digest
                found.append((name, html))
        return found


class StatusPages:
    """Serves the status page from what the daemon observes; `clock` is that of the world's times."""

    def __init__(self, observed: Observed, clock: Callable[[], float], share: LoopShare | None = None) -> None:
        self._observed = observed
        self._clock = clock
        self._streams = EventStreams(MAX_CLIENTS)
        self._share = share or LoopShare()

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Return the routes; each answers GET, and HEAD unless it is a stream."""
        return (
            web.get("/", self._overview),
            web.get("/events", self._overview_events, allow_head=False),
            web.get("/agents/{agent:[^/]+}", self._agent),
            web.get("/agents/{agent:[^/]+}/events", self._agent_events, allow_head=False),
            web.get("/static/{name}", self._static),
        )

    def close(self) -> None:
        """End the streams."""
        self._streams.close()

    async def _overview(self, request: web.Request) -> web.Response:
        try:
            query = PageQuery.parse(list(request.query.items()))
        except ValueError as invalid:
            return await self._error(request, HTTPStatus.BAD_REQUEST, str(invalid), root="")
        return await self._page(request, "overview.html", OVERVIEW, partial(self._overview_model, query))

    async def _overview_events(self, request: web.Request) -> web.StreamResponse:
        try:
            query = PageQuery.parse(list(request.query.items()))
        except ValueError as invalid:
            raise web.HTTPBadRequest(text=f"{invalid}\n") from invalid
        return await self._stream(request, OVERVIEW, partial(self._overview_model, query))

    async def _overview_model(self, query: PageQuery, turn: Turn) -> Json:
        return await overview(self._observed, query, self._clock(), turn)

    async def _agent(self, request: web.Request) -> web.Response:
        return await self._page(request, "agent.html", AGENT, partial(self._agent_model, request))

    async def _agent_events(self, request: web.Request) -> web.StreamResponse:
        async with self._share.turn(request):
            id_ = self._find(request)
        if id_ is None:
            raise web.HTTPNotFound(text="no such agent\n")
        return await self._stream(request, AGENT, partial(self._model_of, id_))

    async def _agent_model(self, request: web.Request, turn: Turn) -> Json | None:
        """Return the model of the page of the agent that a request means; None if it means none, or several."""
        id_ = self._find(request)
        await turn.pause()
        return None if id_ is None else await self._model_of(id_, turn)

    async def _model_of(self, id_: AgentId, _turn: Turn) -> Json | None:
        """Return the model of an agent's page; None once it was forgotten."""
        known = id_ in self._observed.world.records
        return agent_page(self._observed, id_, self._clock()) if known else None

    def _find(self, request: web.Request) -> AgentId | None:
        found = find(self._observed.world, request.match_info["agent"])
        return found[0] if len(found) == 1 else None

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in STATIC:
            raise web.HTTPNotFound(text="no such file\n")
        headers = {**PAGE_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return web.Response(body=static_file(name), content_type=STATIC[name], charset="utf-8", headers=headers)

    async def _page(
        self, request: web.Request, template: str, fragments: tuple[str, ...], make_model: MakeModel
    ) -> web.Response:
        async with self._share.turn(request) as turn:
            model = await make_model(turn)
            await turn.pause()
            if model is not None:
                text = await turn.in_thread(rendered, template, {**model, "fragments": fragments})
                return web.Response(text=text, content_type="text/html", headers=PAGE_HEADERS)
        message = "This controller knows no such agent, or several; it forgets agents 7 days after they left."
        return await self._error(request, HTTPStatus.NOT_FOUND, message, root="../")

    async def _error(self, request: web.Request, status: HTTPStatus, message: str, *, root: str) -> web.Response:
        health = self._observed.health()
        facts = {"controller": health.controller, "version": health.version}
        texts = {"heading": status.phrase, "message": message, "uptime": duration(health.uptime_s)}
        model = {"status": facts, "root": root, "live": False, **texts}
        async with self._share.turn(request) as turn:
            text = await turn.in_thread(rendered, "error.html", model)
        return web.Response(text=text, status=status, content_type="text/html", headers=PAGE_HEADERS)

    async def _stream(
        self, request: web.Request, fragments: tuple[str, ...], make_model: MakeModel
    ) -> web.StreamResponse:
        async with self._streams.open(request) as stream:
            await stream.start()
            sent = _Sent()
            while not (stream.closed or stream.is_lost):
                try:
                    async with self._share.turn(request) as turn:
                        model = await make_model(turn)
                        await turn.pause()
                        changes = [] if model is None else await turn.in_thread(sent.changes, fragments, model)
                except web.HTTPServiceUnavailable:  # too many wait; the answer has started, so it cannot be refused
                    await stream.wait(MIN_PAUSE)
                    continue
                if model is None:
                    break
                for name, html in changes:
                    await stream.send("fragment", json.dumps({"id": name, "html": html, "now": model["now"]}))
                await stream.wait(max(MIN_PAUSE, turn.spent * len(self._streams) / LOAD))
        return stream.response
