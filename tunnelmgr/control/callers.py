"""The caller of a request, and the answers to errors: what all servers of the API share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 1024 * 1024
"""Largest request body; the largest key needs a few thousand bytes."""
READS: Final = frozenset({"GET", "HEAD"})
"""The methods that change nothing."""

KEPT_FIELDS: Final = ("Allow", "Retry-After", "WWW-Authenticate")
"""The header fields of an error that its answer as JSON has too."""


@dataclass(frozen=True, slots=True)
class ApiCaller:
    """Who makes a request: a user of this machine by `uid`, or a remote client by `name`."""

    name: str
    uid: int | None = None

    def signed(self, text: str) -> str:
        """Return a text for an agent's history, with the client's name if it has no uid there."""
        return text if self.uid is not None else f"{text} (by {self.name})"


_CALLER: Final = web.RequestKey("caller", ApiCaller)


def set_caller(request: web.Request, caller: ApiCaller) -> None:
    """Keep who makes a request."""
    request[_CALLER] = caller


def caller_of(request: web.Request) -> ApiCaller:
    """Return who makes a request."""
    return request[_CALLER]


def client_of(request: web.Request) -> str:
    """Return whose request this is, for limits: the caller, or the address if the server knows no callers."""
    caller = request.get(_CALLER)
    return request.remote or "" if caller is None else caller.name


def too_many(what: str) -> web.HTTPServiceUnavailable:
    """Return the answer to a request beyond a limit, which a client may send again soon."""
    return web.HTTPServiceUnavailable(text=f"too many {what}; try again later\n", headers={"Retry-After": "5"})


def is_foreign_request(headers: Mapping[str, str]) -> bool:
    """Return whether a page of another site causes this request, except by a link (W3C, Fetch Metadata).

    Such a page could not read the answer, but it could hold every stream of events open.
    """
    foreign = headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}
    return foreign and headers.get("Sec-Fetch-Mode") != "navigate"


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as JSON."""
    try:
        return await handler(request)
    except web.HTTPException as refused:
        code = (refused.reason or "error").lower().replace(" ", "-")
        headers = {name: refused.headers[name] for name in KEPT_FIELDS if name in refused.headers}
        error = {"code": code, "message": refused.text}
        return web.json_response({"error": error}, status=refused.status, headers=headers)
    except Exception:  # a bulkhead: a fault of ours costs one request
        log.exception("operator request failed", path=request.path)
        message = "internal error; the daemon's log has the traceback"
        return web.json_response({"error": {"code": "internal", "message": message}}, status=500)
