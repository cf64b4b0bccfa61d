"""Who makes a request of the API, what they may do, and how errors are answered: what all its servers share."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

log = structlog.get_logger(__name__)

MAX_BODY_BYTES: Final = 1024 * 1024
"""Largest request body; the largest key needs a few thousand bytes."""
READS: Final = frozenset({"GET", "HEAD"})
"""The methods that change nothing."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors as JSON."""
    try:
        return await handler(request)
    except web.HTTPException as refused:
        code = (refused.reason or "error").lower().replace(" ", "-")
        headers = {name: refused.headers[name] for name in ("Allow", "Retry-After") if name in refused.headers}
        error = {"code": code, "message": refused.text}
        return web.json_response({"error": error}, status=refused.status, headers=headers)
    except Exception:  # a bulkhead: a fault of ours costs one request
        log.exception("operator request failed", path=request.path)
        message = "internal error; the daemon's log has the traceback"
        return web.json_response({"error": {"code": "internal", "message": message}}, status=500)
