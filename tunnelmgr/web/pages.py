"""The status page: its routes, and its live updates.

A page is complete without a script. With one, `/events` and `/agents/ID/events` send each part of the page whose
content has changed, at most once a second, and less often if rendering is expensive: all clients together may use
`LOAD` of the event loop's time. Without clients, nothing is computed. All models are made in turn, and for
pauses in between, so that no number of readers takes the loop from the tunnels.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, TypeVar
from zlib import crc32

from aiohttp import web

from tunnelmgr.control.sse import HEARTBEAT, EventStream, EventStreams
from tunnelmgr.control.units import duration
from tunnelmgr.control.views import Json, find
from tunnelmgr.core.agent import AgentId
from tunnelmgr.threads import in_thread
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
PAUSES: Final = 3.0
"""How much longer than a model takes is the pause after it: all readers together may use a quarter of the loop."""
_AGES = re.compile(r"(<time [^>]*>)[^<]*")
"""The ages in a page, which change by themselves."""

Model = TypeVar("Model", Json, Json | None)
MakeModel = Callable[[], Json | None]


@dataclass(slots=True)
class _Sent:
    """What a client has on its screen, by part, and when it was updated."""

    digests: dict[str, int] = field(default_factory=dict)
    at: float = 0.0


class StatusPages:
    """Serves the status page from what the daemon observes; `clock` is that of the world's times."""

    def __init__(self, observed: Observed, clock: Callable[[], float]) -> None:
        self._observed = observed
        self._clock = clock
        self._streams = EventStreams(MAX_CLIENTS)
        self._turn = asyncio.Lock()

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
            return await self._error(HTTPStatus.BAD_REQUEST, str(invalid), root="")
        model, _ = await self._made(lambda: overview(self._observed, query, self._clock()))
        return await self._page("overview.html", OVERVIEW, model)

    async def _overview_events(self, request: web.Request) -> web.StreamResponse:
        try:
            query = PageQuery.parse(list(request.query.items()))
        except ValueError as invalid:
            raise web.HTTPBadRequest(text=f"{invalid}\n") from invalid
        return await self._stream(request, OVERVIEW, lambda: overview(self._observed, query, self._clock()))

    async def _agent(self, request: web.Request) -> web.Response:
        id_ = self._find(request)
        model = None if id_ is None else (await self._made(lambda: self._agent_model(id_)))[0]
        if model is None:
            message = "This controller knows no such agent, or several; it forgets agents 7 days after they left."
            return await self._error(HTTPStatus.NOT_FOUND, message, root="../")
        return await self._page("agent.html", AGENT, model)

    async def _agent_events(self, request: web.Request) -> web.StreamResponse:
        id_ = self._find(request)
        if id_ is None:
            raise web.HTTPNotFound(text="no such agent\n")
        return await self._stream(request, AGENT, lambda: self._agent_model(id_))

    def _agent_model(self, id_: AgentId) -> Json | None:
        """Return the model of an agent's page; None once it was forgotten."""
        known = id_ in self._observed.world.records
        return agent_page(self._observed, id_, self._clock()) if known else None

    async def _made(self, make_model: Callable[[], Model]) -> tuple[Model, float]:
        """Return a model, after those that others wait for and after a pause, and the seconds of CPU that it took."""
        async with self._turn:
            began = time.thread_time()
            model = make_model()
            spent = time.thread_time() - began
            await asyncio.sleep(PAUSES * spent)
        return model, spent

    async def _static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in STATIC:
            raise web.HTTPNotFound(text="no such file\n")
        headers = {**PAGE_HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return web.Response(body=static_file(name), content_type=STATIC[name], charset="utf-8", headers=headers)

    def _find(self, request: web.Request) -> AgentId | None:
        found = find(self._observed.world, request.match_info["agent"])
        return found[0] if len(found) == 1 else None

    async def _page(
        self, template: str, fragments: tuple[str, ...], model: Json, status: int = HTTPStatus.OK
    ) -> web.Response:
        text = await in_thread(rendered, template, {**model, "fragments": fragments})
        return web.Response(text=text, status=status, content_type="text/html", headers=PAGE_HEADERS)

    async def _error(self, status: HTTPStatus, message: str, *, root: str) -> web.Response:
        health = self._observed.health()
        facts = {"controller": health.controller, "version": health.version}
        texts = {"heading": status.phrase, "message": message, "uptime": duration(health.uptime_s)}
        model = {"status": facts, "root": root, "live": False, **texts}
        return await self._page("error.html", (), model, status)

    async def _stream(
        self, request: web.Request, fragments: tuple[str, ...], make_model: MakeModel
    ) -> web.StreamResponse:
        async with self._streams.open(request) as stream:
            await stream.start()
            sent = _Sent()
            while not stream.closed:
                model, spent = await self._made(make_model)
                if model is None:
                    break
                spent += await self._send_changes(stream, fragments, model, sent)
                await stream.wait(max(MIN_PAUSE, spent * len(self._streams) / LOAD))
        return stream.response

    async def _send_changes(self, stream: EventStream, fragments: tuple[str, ...], model: Json, sent: _Sent) -> float:
        """Send the parts that have changed, or a sign of life at each heartbeat; return the seconds of CPU taken."""
        spent = 0.0
        for name in fragments:
            began = time.thread_time()
            html = rendered(f"fragments/{name}.html", model)
            digest = crc32(_AGES.sub(r"\1", html).encode())
            spent += time.thread_time() - began
            if sent.digests.get(name) != digest:
                sent.digests[name], sent.at = digest, time.monotonic()
                await stream.send("fragment", json.dumps({"id": name, "html": html}))
        if time.monotonic() - sent.at > HEARTBEAT:
            sent.at = time.monotonic()
            await stream.send("unchanged", "{}")
        return spent
