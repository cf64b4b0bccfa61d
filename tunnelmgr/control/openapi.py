"""The OpenAPI document of the API (OpenAPI Specification 3.1.0), made from `api_models.py`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tunnelmgr import __version__
from tunnelmgr.control import api_models as shapes
from tunnelmgr.control.agent_query import MAX_LIMIT, SORTS
from tunnelmgr.control.callers import MAX_BODY_BYTES
from tunnelmgr.core.tunnel import Phase

Json = dict[str, Any]
REFERENCE: Final = "#/components/schemas/{model}"
AGENT: Final = {
    "name": "agent",
    "in": "path",
    "required": True,
    "description": "an id, the beginning of one (with or without its type), or a name",
    "schema": {"type": "string"},
}
MEMBER: Final = {"name": "member", "in": "path", "required": True, "schema": {"type": "string"}}
NOT_MODIFIED: Final = {"description": "nothing has changed since the answer with the tag in If-None-Match"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: what it takes and returns. `refusals` are the statuses of its errors beside `ALWAYS`."""

    method: str
    path: str
    summary: str
    answer: type[BaseModel]
    body: type[BaseModel] | None = None
    body_required: bool = True
    many: bool = False
    tagged: bool = False
    parameters: tuple[Mapping[str, Any], ...] = ()
    refusals: tuple[int, ...] = ()


def _query(name: str, description: str, schema: Json, *, repeated: bool = False, required: bool = False) -> Json:
    found = {"name": name, "in": "query", "description": description, "required": required}
    return found | {"schema": {"type": "array", "items": schema} if repeated else schema}


_TEXT: Final[Json] = {"type": "string"}
_FILTERS: Final = (
    _query("phase", "only agents in one of these phases", {"enum": [phase.value for phase in Phase]}, repeated=True),
    _query("group", "only agents of one of these groups", _TEXT, repeated=True),
    _query("source", "only agents of one of these sources", _TEXT, repeated=True),
    _query("search", "only agents with this text in id, name, group, source, an address or the error", _TEXT),
    _query(
        "sort",
        "what they are sorted by; a leading `-` reverses it",
        {"enum": [*SORTS, *(f"-{sort}" for sort in SORTS)], "default": "newest"},
    ),
    _query("departed", "`true` adds agents that have left and are remembered", {"enum": ["true", "false"]}),
    _query(
        "limit",
        "at most as many; the `Link` field of the answer has the next page",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    ),
    _query("cursor", "the place after which the page starts, from a `Link` field", _TEXT),
)
_POLICY: Final = (
    AGENT,
    _query("action", "what is asked for", {"enum": ["pull", "push", "delete"]}, required=True),
    _query("repository", "the repository's name", _TEXT, required=True),
    _query("forward", "the forward's name; by default the first one with a policy", _TEXT),
)
BAD, MISSING, CONFLICT, INVALID = 400, 404, 409, 422
ALWAYS: Final = {
    401: "the API for other machines: neither a client certificate nor a token that it knows",
    403: "the caller may not do this",
    500: "a fault of the controller; its log has the traceback",
    503: "too many requests wait already",
}
"""What any operation may answer."""
TOO_LARGE: Final = 413
SECURITY: Final[Json] = {
    "certificate": {"type": "mutualTLS", "description": "a client certificate of [api] client_authority"},
    "token": {"type": "http", "scheme": "bearer", "description": "the token of an [[api.client]]"},
}
"""How callers of the API for other machines prove themselves. On the unix socket, the kernel says who calls."""

OPERATIONS: Final = (
    Operation("get", "/v1/status", "The controller's state", shapes.Status),
    Operation("get", "/v1/members", "The members of the cluster", shapes.Cluster, refusals=(CONFLICT,)),
    Operation("get", "/v1/transfers", "The requests in progress", shapes.Transfer, many=True),
    Operation(
        "get",
        "/v1/agents",
        "The agents, newest first",
        shapes.Agent,
        many=True,
        tagged=True,
        parameters=_FILTERS,
        refusals=(BAD,),
    ),
    Operation(
        "get",
        "/v1/agents/{agent}",
        "An agent with its history",
        shapes.AgentDetails,
        tagged=True,
        parameters=(AGENT,),
        refusals=(MISSING, CONFLICT),
    ),
    Operation(
        "get",
        "/v1/agents/{agent}/policy",
        "What an agent's policy says",
        shapes.Policy,
        parameters=_POLICY,
        refusals=(BAD, MISSING, CONFLICT),
    ),
    Operation(
        "post",
        "/v1/agents/{agent}/retry",
        "Connect to an agent now",
        shapes.Retry,
        parameters=(AGENT,),
        refusals=(MISSING, CONFLICT),
    ),
    Operation(
        "post",
        "/v1/agents/{agent}/release",
        "Release an agent from quarantine",
        shapes.Release,
        shapes.ReleaseRequest,
        parameters=(AGENT,),
        refusals=(BAD, MISSING, CONFLICT),
    ),
    Operation(
        "post",
        "/v1/seeds",
        "Expect a host key of a machine that is about to start",
        shapes.Seed,
        shapes.SeedRequest,
        refusals=(BAD,),
    ),
    Operation(
        "post",
        "/v1/plan",
        "What a reload would change",
        shapes.Plan,
        shapes.PlanRequest,
        refusals=(BAD, INVALID),
    ),
    Operation("post", "/v1/reload", "Read the configuration again", shapes.Reload, refusals=(INVALID,)),
    Operation(
        "post",
        "/v1/members/{member}/drain",
        "Have a member hand its agents over",
        shapes.Drain,
        shapes.DrainRequest,
        body_required=False,
        parameters=(MEMBER,),
        refusals=(BAD, CONFLICT),
    ),
    Operation(
        "post",
        "/v1/rebalance",
        "Offer agents to the members that should hold them",
        shapes.Rebalance,
        refusals=(CONFLICT,),
    ),
)
"""Every operation that takes and returns JSON. `/v1/events` is a stream, which OpenAPI 3.1 cannot describe further."""
EVENTS: Final[Json] = {
    "get": {
        "summary": "Phases and histories of agents as they change",
        "operationId": "get_v1_events",
        "description": (
            "Server-sent events: `phase`, `history`, and `reset`, after which the agents have to be read again. "
            "`Last-Event-ID` continues a stream."
        ),
        "responses": {"200": {"description": "a stream", "content": {"text/event-stream": {"schema": _TEXT}}}},
    }
}


@cache
def document() -> Json:
    """Return the OpenAPI document."""
    models = sorted({model for operation in OPERATIONS for model in _models(operation)}, key=lambda one: one.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    paths["/v1/events"] = EVENTS
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tunnelmgr",
            "version": __version__,
            "description": "The controller's API, on its unix socket and at [api] listen. Fields are only ever added.",
        },
        "paths": paths,
        "security": [{}, {"certificate": []}, {"token": []}],
        "components": {"schemas": schemas["$defs"], "securitySchemes": SECURITY},
    }


def _models(operation: Operation) -> Iterator[type[BaseModel]]:
    yield operation.answer
    yield shapes.Error
    if operation.body is not None:
        yield operation.body


def _described(operation: Operation) -> Json:
    answer: Json = _reference(operation.answer)
    if operation.many:
        answer = {"type": "array", "items": answer}
    responses: Json = {"200": {"description": operation.answer.__doc__, "content": _json(answer)}}
    if operation.tagged:
        responses["304"] = NOT_MODIFIED
    refusals = dict.fromkeys(operation.refusals, "refused") | ALWAYS
    if operation.body is not None:
        refusals[TOO_LARGE] = f"the body has more than {MAX_BODY_BYTES} bytes"
    for status, meaning in sorted(refusals.items()):
        responses[str(status)] = {"description": meaning, "content": _json(_reference(shapes.Error))}
    name = operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", "")
    found: Json = {
        "summary": operation.summary,
        "operationId": f"{operation.method}_{name}",
        "parameters": list(operation.parameters),
        "responses": responses,
    }
    if operation.body is not None:
        found["requestBody"] = {"required": operation.body_required, "content": _json(_reference(operation.body))}
    return found


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
