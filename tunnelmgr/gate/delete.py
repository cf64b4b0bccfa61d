"""Handles deletes: a group's rules may allow one, and a protected tag or its manifest still may not be deleted.

Otherwise a tag that is written once could be deleted, or lost with its manifest, and pushed again. A registry deletes a
manifest with all tags that point to it (OCI distribution spec, "Deleting Manifests"), and does not say which these are.
So the gate resolves each protected tag of the repository before it forwards the delete. Some registries store manifests
as blobs, so it does the same for the delete of a blob. The search is bounded; if it does not finish, nothing is
deleted.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tunnelmgr.core.oci import is_tag
from tunnelmgr.core.policy import Verdict
from tunnelmgr.core.tunnel import Endpoint
from tunnelmgr.errors import RegistryUnavailableError
from tunnelmgr.gate.authorized_request import AuthorizedRequest
from tunnelmgr.gate.concurrency_limit import Slots
from tunnelmgr.gate.local_reply import LocalReply
from tunnelmgr.gate.registry_queries import RegistryPage, RegistryQueries
from tunnelmgr.gate.tag_locks import DELETING, TagLocks

MAX_PROTECTED_TAGS: Final = 1000
"""Protected tags of a repository that are resolved for one delete; a registry on the same machine takes a second."""
MAX_TAG_PAGES: Final = 100
"""Pages of tags that are read for one delete."""


@dataclass(frozen=True, slots=True)
class DeleteHandler:
    """Carries out one agent's deletes in one registry; `timeout` is the seconds for the search of protected tags."""

    tag_locks: TagLocks
    searches: Slots
    queries: RegistryQueries
    target: Endpoint
    timeout: float

    async def handle(self, delete: AuthorizedRequest) -> LocalReply | None:
        """Forward a delete and its response, or return the refusal."""
        request = delete.request
        if request.has_tag and (rule := delete.policy.immutable_tags.rule(request.reference)):
            reason = f"tunnelmgr: {request.repository}:{request.reference} may not be deleted ({rule})"
            return delete.refuse(Verdict(allowed=False, rule=rule, reason=reason))
        if request.has_tag or not delete.policy.immutable_tags:
            response = await delete.exchange.forward_request(delete.head, request)
        else:
            with self.tag_locks.try_lock({(self.target, request.repository, request.reference): DELETING}) as locked:
                refused = await self._protected(delete) if locked else _conflict(delete)
                if refused is not None:
                    return delete.refuse(refused)
                response = await delete.exchange.forward_request(delete.head, request)
        await delete.exchange.forward_response(delete.head, request, response)
        return None

    async def _protected(self, delete: AuthorizedRequest) -> Verdict | None:
        """Return why the digest may not be deleted, None if no protected tag points to it."""
        try:
            # An agent has one search at a time: each may send a thousand requests to the registry.
            async with asyncio.timeout(self.timeout), self.searches:
                return await self._search(delete)
        except TimeoutError as late:
            raise RegistryUnavailableError(
                f"{delete.request.reference} was not deleted: the search for protected tags of "
                f"{delete.request.repository} that point to it did not finish within {self.timeout:g} s; try again, or "
                "delete it on the registry itself"
            ) from late

    async def _search(self, delete: AuthorizedRequest) -> Verdict | None:
        repository, digest = delete.request.repository, delete.request.reference
        algorithm = digest.partition(":")[0]
        resolved = 0
        async for tag, rule in self._protected_tags(delete):
            resolved += 1
            if resolved > MAX_PROTECTED_TAGS:
                return _undecided(delete, rule, f"{repository} has more than {MAX_PROTECTED_TAGS} protected tags")
            manifest = await self.queries.resolve_tag(delete.head.host, repository, tag)
            if manifest is None:
                continue
            if manifest.digest == digest:
                reason = f"tunnelmgr: {digest} may not be deleted: {repository}:{tag} points to it ({rule})"
                return Verdict(allowed=False, rule=rule, reason=reason)
            if manifest.digest.partition(":")[0] != algorithm:
                return _undecided(delete, rule, f"the registry reports no {algorithm} digest of {repository}:{tag}")
        return None

    async def _protected_tags(self, delete: AuthorizedRequest) -> AsyncIterator[tuple[str, str]]:
        """Yield the repository's protected tags with their rules; raises RegistryUnavailableError for endless pages."""
        path = f"/v2/{delete.request.repository}/tags/list"
        target = path
        for _ in range(MAX_TAG_PAGES):
            page = await self.queries.fetch_page(delete.head.host, target)
            if page.status == HTTPStatus.NOT_FOUND:
                return
            tags = _tags(page)
            for tag in tags:
                if (rule := delete.policy.immutable_tags.rule(tag)) is not None:
                    yield tag, rule
            if not page.has_next:
                return
            if not tags:
                break
            target = f"{path}?last={tags[-1]}"
        raise RegistryUnavailableError(
            f"the registry's list of tags of {delete.request.repository} is longer than {MAX_TAG_PAGES} pages, or has "
            "an empty page that links to a next one"
        )


def _tags(page: RegistryPage) -> list[str]:
    """Return the tags on a page; an invalid tag protects nothing, since no client can push to it."""
    if page.status != HTTPStatus.OK:
        raise RegistryUnavailableError(f"the registry answered {page.status} when asked for its tags")
    try:
        tags = json.loads(page.body)["tags"] or []
    except (ValueError, KeyError, TypeError) as invalid:
        raise RegistryUnavailableError("the registry's list of tags is not a JSON object with `tags`") from invalid
    if not isinstance(tags, list):
        raise RegistryUnavailableError("the registry's list of tags is not a JSON object with `tags`")
    return [tag for tag in tags if isinstance(tag, str) and is_tag(tag)]


def _undecided(delete: AuthorizedRequest, rule: str, why: str) -> Verdict:
    reason = (
        f"tunnelmgr: {delete.request.reference} was not deleted, since a protected tag may point to it ({rule}): "
        f"{why}; delete it on the registry itself"
    )
    return Verdict(allowed=False, rule=rule, reason=reason)


def _conflict(delete: AuthorizedRequest) -> Verdict:
    reason = f"tunnelmgr: {delete.request.reference} is being pushed under a protected tag; try again later"
    return Verdict(allowed=False, rule="immutable_tags", reason=reason)
