"""The operations of the API: what each request reads or changes. Each server decides who may make it."""

import json
import math
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Final, NoReturn, Protocol, TypeVar

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, ValidationError

from tunnelmgr.config.changes import Preview
from tunnelmgr.control import api_models as shapes
from tunnelmgr.control.agent_query import AgentQuery
from tunnelmgr.control.callers import caller_of
from tunnelmgr.control.entity_tag import tagged, tagged_json
from tunnelmgr.control.loop_share import LoopShare, Turn
from tunnelmgr.control.openapi import document
from tunnelmgr.control.views import (
    Json,
    agent_in,
    cluster_view,
    find,
    history_view,
    preview_view,
    status_view,
    transfer_view,
)
from tunnelmgr.core.activity import Transfer
from tunnelmgr.core.agent import Agent, AgentId
from tunnelmgr.core.cluster import NO_CLUSTER
from tunnelmgr.core.events import Event, ReleaseRequested, RetryRequested, SeedAdded
from tunnelmgr.core.health import Telemetry
from tunnelmgr.core.host_key import parse_key
from tunnelmgr.core.policies import Explained
from tunnelmgr.core.sanitize import sanitize
from tunnelmgr.core.seed import Seed
from tunnelmgr.core.timestamp import timestamp
from tunnelmgr.core.tunnel import Phase
from tunnelmgr.core.world import status_of
from tunnelmgr.errors import ConfigError, release_command

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Shape = TypeVar("Shape", bound=BaseModel)

NOTE_EVERY: Final = 5.0
"""Seconds between two refused changes of one caller that are logged and audited: a script may repeat them quickly."""


class Operations(Telemetry, Protocol):
    """What the server needs from the daemon; `daemon/operations.py` implements it."""

    def report(self, event: Event) -> None:
        """Pass an event to the controller."""
        ...

    def transfers(self) -> Sequence[Transfer]:
        """Return the requests in progress."""
        ...

    def note_request(self, who: str, uid: int | None, method: str, path: str, status: int) -> None:
        """Audit a request that changes something, with its answer."""
        ...

    def drain_member(self, member: str, *, on: bool) -> None:
        """Have a member of the cluster hand its agents over, or end that; raises ValueError if there is none."""
        ...

    def rebalance(self) -> int:
        """Offer agents to the members that should hold them; returns how many, raises ValueError without a cluster."""
        ...

    def explain(self, agent: AgentId, action: str, repository: str, forward: str) -> Explained:
        """Return what the agent's policy says at a forward, by default the first one; raises ValueError if invalid."""
        ...

    async def preview(self, text: str, file: str) -> Preview:
        """Return what a reload of a file with this text would change; raises ConfigError if it is invalid."""
        ...

    async def reload(self) -> list[str]:
        """Read the configuration again and return remarks; raises ConfigError and changes nothing if it is invalid."""
        ...


class ApiRoutes:
    """The operations for one daemon. `wall` is the clock by which seeds expire."""

    def __init__(
        self, operations: Operations, wall: Callable[[], float] = time.time, share: LoopShare | None = None
    ) -> None:
        self._operations = operations
        self._wall = wall
        self._share = share or LoopShare()

    def routes(self) -> Iterable[web.RouteDef]:
        """Return the routes."""
        return (
            web.get("/v1/openapi.json", self._document),
            web.get("/v1/status", self._status),
            web.get("/v1/transfers", self._transfers),
            web.get("/v1/members", self._members),
            web.get("/v1/agents", self._agents),
            web.get("/v1/agents/{agent}", self._agent),
            web.get("/v1/agents/{agent}/policy", self._policy),
            web.post("/v1/agents/{agent}/retry", self._retry),
            web.post("/v1/agents/{agent}/release", self._release),
            web.post("/v1/seeds", self._seed),
            web.post("/v1/plan", self._plan),
            web.post("/v1/reload", self._reload),
            web.post("/v1/members/{member}/drain", self._drain),
            web.post("/v1/rebalance", self._rebalance),
        )

    # --- reading ---

    async def _document(self, request: web.Request) -> web.Response:
        return tagged_json(request, document())

    async def _status(self, request: web.Request) -> web.Response:
        async with self._share.turn(request):
            return web.json_response(status_view(self._operations.world, self._operations.health()))

    async def _transfers(self, _request: web.Request) -> web.Response:
        return web.json_response([transfer_view(one) for one in self._operations.transfers()])

    async def _members(self, _request: web.Request) -> web.Response:
        cluster = self._operations.world.cluster
        if cluster is None:
            raise web.HTTPConflict(text=NO_CLUSTER)
        return web.json_response(cluster_view(cluster, self._operations.health().sharing))

    async def _agents(self, request: web.Request) -> web.Response:
        async with self._share.turn(request) as turn:
            try:
                query = AgentQuery.parse(list(request.query.items()))
                body, cursor = await self._encoded(query, turn)
            except ValueError as invalid:
                raise web.HTTPBadRequest(text=str(invalid)) from invalid
        response = web.Response(body=body, content_type="application/json", charset="utf-8")
        if cursor is not None:
            response.headers["Link"] = f'<{request.rel_url.update_query(cursor=cursor)}>; rel="next"'
        return tagged(request, response)

    async def _encoded(self, query: AgentQuery, turn: Turn) -> tuple[bytes, str | None]:
        """Return the agents as JSON, and the cursor of the next page; raises ValueError for an invalid cursor."""
        world, traffic = self._operations.world, self._operations.traffic
        page, cursor = query.page(await query.select(world, traffic, turn))
        agents: list[str] = []
        async for part in turn.slices(page):
            agents += [json.dumps(agent_in(world, one.record, traffic.get(one.record.agent.id))) for one in part]
        return f"[{', '.join(agents)}]".encode(), cursor

    async def _agent(self, request: web.Request) -> web.Response:
        async with self._share.turn(request):
            return tagged_json(request, self._details(self._find(request)))

    def _details(self, id_: AgentId) -> Json:
        world = self._operations.world
        record = world.records[id_]
        view = agent_in(world, record, self._operations.traffic.get(id_))
        return {**view, "history": history_view(record)}

    def _find(self, request: web.Request, *, strictly: bool = False) -> AgentId:
        wanted = request.match_info["agent"]
        world = self._operations.world
        found = find(world, wanted, strictly=strictly)
        if not found:
            raise web.HTTPNotFound(text=f"no agent matches {wanted!r}; run: tunnelmgr list --all")
        if len(found) > 1:
            candidates = ", ".join(_id_and_name(world.records[id_].agent) for id_ in sorted(found)[:10])
            raise web.HTTPConflict(text=f"{wanted!r} matches {candidates}; use a longer prefix or a whole id")
        return found[0]

    async def _policy(self, request: web.Request) -> web.Response:
        async with self._share.turn(request):
            id_ = self._find(request)
        action, repository = request.query.get("action", ""), request.query.get("repository", "")
        try:
            explained = self._operations.explain(id_, action, repository, request.query.get("forward", ""))
        except ValueError as invalid:
            raise web.HTTPBadRequest(text=str(invalid)) from invalid
        group = self._operations.world.records[id_].agent.group
        verdict = explained.verdict
        facts = {"agent": id_, "group": group, "forward": explained.forward, "action": action, "repository": repository}
        return web.json_response({**facts, "allowed": verdict.allowed, "rule": verdict.rule, "reason": verdict.reason})

    # --- changing ---

    async def _retry(self, request: web.Request) -> web.Response:
        id_ = self._find(request, strictly=True)
        world = self._operations.world
        phase = status_of(world, world.records[id_]).phase
        if phase is Phase.QUARANTINED:
            investigate = f"investigate with: tunnelmgr show {shlex.quote(id_)}; then run: {release_command(id_)}"
            raise web.HTTPConflict(text=f"{id_} is quarantined and is not retried; {investigate}")
        self._operations.report(RetryRequested(id_, caller_of(request).uid))
        return web.json_response({"agent": id_, "phase": phase.value, "retry": "now"})

    async def _release(self, request: web.Request) -> web.Response:
        id_ = self._find(request, strictly=True)
        if not self._operations.world.records[id_].held_back:
            raise web.HTTPConflict(text=f"{id_} is not quarantined")
        expected = f'{{"reason": "…"}}, to say why {id_} is safe again; it is kept in the agent\'s history'
        reason = (await _body(request, shapes.ReleaseRequest, expected)).reason
        caller = caller_of(request)
        self._operations.report(ReleaseRequested(id_, caller.signed(reason), caller.uid))
        return web.json_response({"agent": id_, "released": True})

    async def _seed(self, request: web.Request) -> web.Response:
        asked = await _body(request, shapes.SeedRequest, '{"key": "ssh-ed25519 AAAA…", "seconds": 600}')
        try:
            key = parse_key(asked.key)
        except ValueError as invalid:
            raise web.HTTPBadRequest(text=f"invalid public host key: {invalid}") from invalid
        seed = Seed(secrets.token_hex(8), key, self._wall() + asked.seconds)
        self._operations.report(SeedAdded(seed))
        return web.json_response({"seed": seed.id, "expires": timestamp(seed.expires)})

    async def _drain(self, request: web.Request) -> web.Response:
        member, on = request.match_info["member"], (await _body(request, shapes.DrainRequest, '{"on": true}')).on
        try:
            self._operations.drain_member(member, on=on)
        except ValueError as unknown:
            raise web.HTTPConflict(text=str(unknown)) from unknown
        return web.json_response({"member": member, "draining": on})

    async def _rebalance(self, _request: web.Request) -> web.Response:
        try:
            offered = self._operations.rebalance()
        except ValueError as alone:
            raise web.HTTPConflict(text=str(alone)) from alone
        return web.json_response({"offered": offered})

    async def _plan(self, request: web.Request) -> web.Response:
        body = await _body(request, shapes.PlanRequest, '{"text": "[controller]…", "file": "new.toml"}')
        try:
            return web.json_response(preview_view(await self._operations.preview(body.text, body.file)))
        except ConfigError as invalid:
            return _invalid(invalid)

    async def _reload(self, _request: web.Request) -> web.Response:
        try:
            remarks = await self._operations.reload()
        except ConfigError as invalid:
            return _invalid(invalid)
        return web.json_response({"reloaded": True, "remarks": remarks})


class RefusedChanges:
    """Refuses changes by callers who may only read; logs and audits one of each caller in `NOTE_EVERY` seconds."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._noted: dict[str, float] = {}

    def refuse(self, request: web.Request, reason: str) -> NoReturn:
        """Raise HTTPForbidden."""
        caller, now = caller_of(request), time.monotonic()
        if now - self._noted.get(caller.name, -math.inf) >= NOTE_EVERY:
            self._noted[caller.name] = now
            log.warning("operator request refused", caller=caller.name, path=request.path, reason=reason)
            self._operations.note_request(caller.name, caller.uid, request.method, request.path, HTTPStatus.FORBIDDEN)
        raise web.HTTPForbidden(text=reason)


async def audited(request: web.Request, handler: Handler, operations: Operations) -> web.StreamResponse:
    """Handle a request that changes something, and audit it with its answer."""
    caller, status = caller_of(request), 500
    try:
        response = await handler(request)
        status = response.status
    except web.HTTPException as refused:
        status = refused.status
        raise
    finally:
        operations.note_request(caller.name, caller.uid, request.method, request.path, status)
    return response


def _invalid(invalid: ConfigError) -> web.Response:
    """Return the answer to a request for a configuration that is invalid, with every problem."""
    facts = {"code": invalid.code, "message": str(invalid), "problems": invalid.problems, "file": invalid.file}
    return web.json_response({"error": facts}, status=422)


async def _body(request: web.Request, shape: type[Shape], expected: str) -> Shape:
    """Return a request's body, by default an object without fields; raises HTTPBadRequest if it is invalid."""
    text = await request.read() if request.can_read_body else b"{}"
    try:
        return shape.model_validate_json(text)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else first["msg"]
        raise web.HTTPBadRequest(text=f"invalid body ({what}); expected: {expected}") from invalid


def _id_and_name(agent: Agent) -> str:
    """Return an agent's id, with its name if that differs."""
    own = agent.id.partition(":")[2] == agent.name
    return sanitize(agent.id) if own else f"{sanitize(agent.id)} (named {sanitize(agent.name, 40)})"
