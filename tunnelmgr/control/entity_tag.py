"""Answers with an entity tag, so that a client that polls gets 304 while nothing has changed (RFC 9110, 8.8.3)."""

from collections.abc import Mapping
from hashlib import blake2b

from aiohttp import web

from tunnelmgr.control.views import Json


def tagged_json(
    request: web.Request, answer: Json | list[Json], headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return JSON with a tag of its content, or 304 without a body if the client has it."""
    return tagged(request, web.json_response(answer, headers=headers))


def tagged(request: web.Request, response: web.Response) -> web.Response:
    """Return a response with a tag of its body, or 304 if the client has it."""
    body = response.body if isinstance(response.body, bytes) else b""
    tag = blake2b(body, digest_size=12).hexdigest()
    if any(known.value in {tag, "*"} for known in request.if_none_match or ()):
        response = web.Response(status=304)
    response.etag = tag
    return response
