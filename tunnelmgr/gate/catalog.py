"""The catalog as one group sees it: the registry's pages, filtered and cut anew (Docker's "Listing Repositories").

- A page holds names that the group may pull and no others; nothing else of the registry's answer is passed on.
- `last` of the next page is a name of this one, never one that was filtered away.
- The link to a next page is given only if there is something on it.
- The search is bounded in pages and in time. What was found until then is a page; finding nothing until then is an
  error. An agent has one search at a time, and lets others run while names are filtered.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.local_reply import LocalReply

PAGE: Final = 100
"""Names on a page when the agent does not say, as in docker-registry."""
MOST: Final = 1000
"""Names on a page at most, and asked of the registry at once; docker-registry's default `catalog.maxentries`."""
MAX_REGISTRY_PAGES: Final = 100
"""Pages of the registry that are read for one of ours."""
PATIENCE: Final = 5.0
"""Seconds that the search for one page may take, the wait for the agent's other searches included."""
NAMES_PER_CHECKPOINT: Final = 64
"""Names that are filtered between two checkpoints: about 0.2 ms."""


@dataclass(frozen=True, slots=True)
class RegistryPage:
    """What the registry answered: its status, its body, and whether it links to a next page."""

    status: int
    body: bytes
    has_next: bool


Fetch = Callable[[str], Awaitable[RegistryPage]]
"""From a target to the registry's page."""


@dataclass(frozen=True, slots=True)
class CatalogSearch:
    """How the catalog is searched for one agent.

    `visible` tells whether the agent's group may see a name, `checkpoint` lets other agents run, and `turn` is shared
    by all searches of the agent.
    """

    fetch: Fetch
    visible: Callable[[str], bool]
    checkpoint: Callable[[], Awaitable[None]]
    turn: asyncio.Semaphore
    patience: float = field(default_factory=lambda: PATIENCE)

    async def page(self, request: RegistryRequest, *, close: bool) -> LocalReply:
        """LocalReply a catalog request with visible names only; raises RegistryUnavailableError."""
        asked = dict(request.query)
        wanted = min(int(asked.get("n", PAGE)), MOST)
        names: list[str] = []
        more = True
        try:
            async with asyncio.timeout(self.patience), self.turn:
                more = await self._find(names, wanted, asked.get("last", ""))
        except TimeoutError:
            if not names:
                raise RegistryUnavailableError(
                    f"no repository of yours was found in the catalog within {self.patience:g} s: "
                    "ask for it by name, or again later"
                ) from None
        if more and wanted and not names:
            raise RegistryUnavailableError(
                f"no repository of yours is on the first {MAX_REGISTRY_PAGES} pages of the catalog from here: "
                "ask for it by name"
            )
        shown = names[:wanted]
        link = _link(shown[-1], wanted) if shown and (more or len(names) > wanted) else ""
        return LocalReply(HTTPStatus.OK, {"repositories": shown}, close, link)

    async def _find(self, names: list[str], wanted: int, last: str) -> bool:
        """Add visible names that follow `last`, one more than wanted if there are; return whether there may be more."""
        more, size = wanted > 0, f"n={MOST}"
        searched = 0
        while more and len(names) <= wanted and searched < MAX_REGISTRY_PAGES:
            page = await self.fetch(_target(size, last))
            if page.status == HTTPStatus.BAD_REQUEST and size:
                size = ""  # a registry with a smaller `maxentries` takes no number above it, but has a default
                continue
            found = _names(page)
            for start in range(0, len(found), NAMES_PER_CHECKPOINT):
                names += filter(self.visible, found[start : start + NAMES_PER_CHECKPOINT])
                await self.checkpoint()
            more = page.has_next and bool(found)
            last = found[-1] if found else ""
            searched += 1
        return more


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
        raise RegistryUnavailableError("the registry's catalog is not a list of names")
    return names


def _link(last: str, size: int) -> str:
    return f'</v2/_catalog?last={quote(last, safe="")}&n={size}>; rel="next"'
