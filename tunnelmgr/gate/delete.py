"""Deletes, where more than the grant decides: a protected tag and the manifest that it points to stay.

Without this a tag that is written once could be deleted, or lost with its manifest, and pushed again. A registry
deletes a manifest with all tags that point to it (OCI distribution spec, "Deleting Manifests"), and does not say which
these are. So the gate asks what each protected tag of the repository points to. Some registries keep manifests among
the blobs, so it does the same before a blob is deleted. The search is bounded; if it does not come to an end, nothing
is deleted.
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
from tunnelmgr.gate.catalog import RegistryPage
from tunnelmgr.gate.local_reply import LocalReply
from tunnelmgr.gate.tag_locks import DELETING, TagLocks

MAX_PROTECTED_TAGS: Final = 1000
"""Protected tags of a repository that are asked for one delete; a registry on the same machine takes a second."""
MAX_TAG_PAGES: Final = 100
"""Pages of tags that are read for one delete."""


@dataclass(frozen=True, slots=True)
class DeleteHandler:
    """One agent's deletes in one registry."""

    writing: TagLocks
    searching: asyncio.Semaphore
    target: Endpoint
    patience: float
    """Seconds for the search for protected tags."""

    async def carry(self, delete: AuthorizedRequest) -> LocalReply | None:
        """Carry a delete out, or return why not."""
        request = delete.request
        if request.has_tag and (rule := delete.policy.immutable_tags.rule(request.reference)):
            told = f"tunnelmgr: {request.repository}:{request.reference} may not be deleted ({rule})"
            return delete.refuse(Verdict(allowed=False, rule=rule, reason=told))
        if request.has_tag or not delete.policy.immutable_tags:
            answer = await delete.exchange.ask(delete.head, request)
            await delete.exchange.pass_back(delete.head, request, answer)
            return None
        with self.writing.claim({(self.target, request.repository, request.reference): DELETING}) as granted:
            refused = await self._protected(delete) if granted else _being_tagged(delete)
            if refused is not None:
                return delete.refuse(refused)
            answer = await delete.exchange.ask(delete.head, request)
        await delete.exchange.pass_back(delete.head, request, answer)
        return None

    async def _protected(self, delete: AuthorizedRequest) -> Verdict | None:
        """Return why the digest may not be deleted, None if no protected tag points to it."""
        try:
            # One search of an agent at a time: each may be a thousand requests to the registry.
            async with asyncio.timeout(self.patience), self.searching:
                return await _search(delete)
        except TimeoutError as late:
            raise RegistryUnavailableError(
                f"it was not found within {self.patience:g} s which tags of {delete.request.repository} point to "
                f"{delete.request.reference}, so it was not deleted: try again, or delete it on the registry itself"
            ) from late


async def _search(delete: AuthorizedRequest) -> Verdict | None:
    repository, digest = delete.request.repository, delete.request.reference
    asked = 0
    async for tag, rule in _protected_tags(delete):
        asked += 1
        if asked > MAX_PROTECTED_TAGS:
            return _untold(delete, rule, f"{repository} has more than {MAX_PROTECTED_TAGS} protected tags")
        there = await delete.exchange.look_up(delete.head, repository, tag)
        if there is None:
            continue
        if there.digest == digest:
            told = f"tunnelmgr: {digest} may not be deleted: {repository}:{tag} points to it ({rule})"
            return Verdict(allowed=False, rule=rule, reason=told)
        if there.digest.partition(":")[0] != digest.partition(":")[0]:
            return _untold(
                delete, rule, f"the registry reports no {digest.partition(':')[0]} digest of {repository}:{tag}"
            )
    return None


async def _protected_tags(delete: AuthorizedRequest) -> AsyncIterator[tuple[str, str]]:
    """Yield the repository's protected tags with their rules; raises RegistryUnavailableError if there is no end."""
    place = f"/v2/{delete.request.repository}/tags/list"
    target = place
    for _ in range(MAX_TAG_PAGES):
        page = await delete.exchange.fetch(delete.head, target)
        if page.status == HTTPStatus.NOT_FOUND:
            return
        tags = _read(page)
        for tag in tags:
            if (rule := delete.policy.immutable_tags.rule(tag)) is not None:
                yield tag, rule
        if not page.has_next:
            return
        if not tags:
            break
        target = f"{place}?last={tags[-1]}"
    raise RegistryUnavailableError(f"the registry's list of tags of {delete.request.repository} does not end")


def _read(page: RegistryPage) -> list[str]:
    """Return the tags on a page; a name that is no tag stands in the way of nothing, since nobody can push to it."""
    if page.status != HTTPStatus.OK:
        raise RegistryUnavailableError(f"the registry answered {page.status} when asked for its tags")
    try:
        tags = json.loads(page.body)["tags"] or []
    except (ValueError, KeyError, TypeError) as odd:
        raise RegistryUnavailableError("the registry's list of tags is not readable") from odd
    if not isinstance(tags, list):
        raise RegistryUnavailableError("the registry's list of tags is not readable")
    return [tag for tag in tags if isinstance(tag, str) and is_tag(tag)]


def _untold(delete: AuthorizedRequest, rule: str, reason: str) -> Verdict:
    told = (
        f"tunnelmgr: {delete.request.reference} was not deleted, since a protected tag may point to it ({rule}): "
        f"{reason}; delete it on the registry itself"
    )
    return Verdict(allowed=False, rule=rule, reason=told)


def _being_tagged(delete: AuthorizedRequest) -> Verdict:
    told = f"tunnelmgr: {delete.request.reference} is being pushed under a protected tag just now"
    return Verdict(allowed=False, rule="immutable_tags", reason=told)
