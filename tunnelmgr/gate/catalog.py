"""The catalog as one group sees it: the registry's pages, filtered and paged again (Docker's "Listing Repositories").

- A page holds names that the group may pull and no others; nothing else of the registry's response is forwarded.
- `last` of the next page is a name on this page, never one that was filtered out.
- There is a link to a next page only if it would hold a name.
- The search is bounded in pages and in time. The names found by then are a page; if there are none, it is an error. An
  agent has one search at a time, and other agents run while names are filtered.
"""

import asyncio
import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import quote

from tunnelmgr.core.oci import RegistryRequest
from tunnelmgr.core.policy import GroupPolicy, may_list
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.local_reply import LocalReply
from tunnelmgr.gate.registry_queries import RegistryPage

DEFAULT_PAGE_NAMES: Final = 100
"""Names on a page if the agent does not give a number, as in docker-registry."""
MAX_PAGE_NAMES: Final = 1000
"""Names on a page at most, and requested from the registry at once; docker-registry's default `catalog.maxentries`."""
MAX_REGISTRY_PAGES: Final = 100
"""Pages of the registry that are read for one page of the gate."""
SEARCH_TIMEOUT: Final = 5.0
"""Seconds that the search for one page may take, including the wait for the agent's other searches."""
NAMES_PER_CHECKPOINT: Final = 64
"""Names that are filtered between two checkpoints: about 0.2 ms."""


class PageSource(Protocol):
    """Gets pages from the registry; see `RegistryQueries`."""

    async def fetch_page(self, host: str, target: str) -> RegistryPage:
        """Get one page; raises RegistryUnavailableError."""
        ...


class Checkpoints(Protocol):
    """Lets other agents run; see `Channel`."""

    async def checkpoint(self) -> None:
        """Let other agents run if this one has used up its slice."""
        ...


@dataclass(frozen=True, slots=True)
class CatalogSearch:
    """A search of the catalog for names that a group may see; `turn` is shared by all searches of the agent."""

    pages: PageSource
    host: str
    policy: GroupPolicy
    agent: Checkpoints
    turn: Slots
    timeout: float = field(default_factory=lambda: SEARCH_TIMEOUT)

    async def page(self, request: RegistryRequest, *, close: bool) -> LocalReply:
        """Return the page that a catalog request asks for; raises RegistryUnavailableError."""
        query = dict(request.query)
        wanted = min(int(query.get("n", DEFAULT_PAGE_NAMES)), MAX_PAGE_NAMES)
        names: list[str] = []
        more = True
        try:
            async with asyncio.timeout(self.timeout), self.turn:
                more = await self._find(names, wanted, query.get("last", ""))
        except TimeoutError:
            if not names:
                raise RegistryUnavailableError(
                    f"no repository that group {self.policy.group} may pull was found in the catalog within "
                    f"{self.timeout:g} s: use the repository's name, or try again later"
                ) from None
        if more and wanted and not names:
            raise RegistryUnavailableError(
                f"no repository that group {self.policy.group} may pull is on the next {MAX_REGISTRY_PAGES} pages of "
                "the catalog: use the repository's name"
            )
        shown = names[:wanted]
        link = _link(shown[-1], wanted) if shown and (more or len(names) > wanted) else ""
        return LocalReply(HTTPStatus.OK, {"repositories": shown}, close, link)

    async def _find(self, names: list[str], wanted: int, last: str) -> bool:
        """Add visible names that follow `last`, one more than wanted if possible; return whether there may be more."""
        more, size = wanted > 0, f"n={MAX_PAGE_NAMES}"
        searched = 0
        while more and len(names) <= wanted and searched < MAX_REGISTRY_PAGES:
            page = await self.pages.fetch_page(self.host, _target(size, last))
            if page.status == HTTPStatus.BAD_REQUEST and size:
                size = ""  # a registry with a smaller `maxentries` refuses a number above it, but has a default
                continue
            found = _names(page)
            for start in range(0, len(found), NAMES_PER_CHECKPOINT):
                some = found[start : start + NAMES_PER_CHECKPOINT]
                names += (name for name in some if may_list(name, self.policy))
                await self.agent.checkpoint()
            more = page.has_next and bool(found)
            last = found[-1] if found else ""
            searched += 1
        return more


def _target(size: str, last: str) -> str:
    query = "&".join(filter(None, (size, last and f"last={quote(last, safe='')}")))
    return f"/v2/_catalog?{query}" if query else "/v2/_catalog"


def _names(page: RegistryPage) -> list[str]:
    """Return the names on a page, also those that no request through the gate can use: `may_list` drops these."""
    if page.status != HTTPStatus.OK:
        raise RegistryUnavailableError(f"the registry answered {page.status} when asked for its catalog")
    try:
        names = json.loads(page.body)["repositories"] or []
    except (ValueError, KeyError, TypeError) as invalid:
        raise RegistryUnavailableError("the registry's catalog is not a JSON object with `repositories`") from invalid
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RegistryUnavailableError("the registry's catalog is not a list of names")
    return names


def _link(last: str, size: int) -> str:
    return f'</v2/_catalog?last={quote(last, safe="")}&n={size}>; rel="next"'
