"""The catalog as one group sees it: the registry's pages, filtered and cut anew (Docker's "Listing Repositories").

- A page holds names that the group may pull and no others; nothing else of the registry's answer is passed on.
- `last` of the next page is a name of this one, never one that was filtered away.
- The link to a next page is given only if there is something on it.
- The search is bounded. What was found until then is a page; finding nothing at all until then is an error.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from tunnelmgr.core.registry import RegistryRequest
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.answers import Answer

PAGE: Final = 100
"""Names on a page when the agent does not say, as in docker-registry."""
MOST: Final = 1000
"""Names on a page at most, and asked of the registry at once; docker-registry's default `catalog.maxentries`."""
SEARCHED: Final = 100
"""Pages of the registry that are read for one of ours."""


@dataclass(frozen=True, slots=True)
class RegistryPage:
    """What the registry answered: its status, its body, and whether it links to a next page."""

    status: int
    body: bytes
    has_next: bool


Fetch = Callable[[str], Awaitable[RegistryPage]]
"""From a target to the registry's page."""


async def visible_catalog(
    request: RegistryRequest, fetch: Fetch, visible: Callable[[str], bool], *, close: bool
) -> Answer:
    """Answer a catalog request with visible names only; raises RegistryUnavailableError."""
    asked = dict(request.query)
    wanted = min(int(asked.get("n", PAGE)), MOST)
    names: list[str] = []
    more = wanted > 0
    last = asked.get("last", "")
    size = f"n={MOST}"
    searched = 0
    # One name more than wanted tells that there is a next page.
    while more and len(names) <= wanted and searched < SEARCHED:
        page = await fetch(_target(size, last))
        if page.status == HTTPStatus.BAD_REQUEST and size:
            size = ""  # a registry with a smaller `maxentries` takes no number above it, but has a default
            continue
        found = _names(page)
        names += filter(visible, found)
        more = page.has_next and bool(found)
        last = found[-1] if found else ""
        searched += 1
    if more and not names:
        raise RegistryUnavailableError(
            "this registry has too many repositories to look for yours: ask for them by name"
        )
    shown = names[:wanted]
    link = _link(shown[-1], wanted) if shown and (more or len(names) > wanted) else ""
    return Answer(HTTPStatus.OK, {"repositories": shown}, close, link)


def _target(size: str, last: str) -> str:
    query = "&".join(filter(None, (size, last and f"last={quote(last, safe='')}")))
    return f"/v2/_catalog?{query}" if query else "/v2/_catalog"


def _names(page: RegistryPage) -> list[str]:
    """Read a page; names that no request through the gate could use are left out by `visible`, not here."""
    if page.status != HTTPStatus.OK:
        raise RegistryUnavailableError(f"the registry answered {page.status} when asked for its catalog")
    try:
        names = json.loads(page.body)["repositories"] or []
    except (ValueError, KeyError, TypeError) as odd:
        raise RegistryUnavailableError("the registry's catalog is not readable") from odd
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RegistryUnavailableError("the registry's catalog is no list of names")
    return names


def _link(last: str, size: int) -> str:
    return f'</v2/_catalog?last={quote(last, safe="")}&n={size}>; rel="next"'
